"""Files of torch.save, read as tensors and plain data; nothing in them is run.

`torch.load(weights_only=True)` builds only what a list of names allows. torch's own list is longer than files of
tensors need, and some names on it can fill the memory from a few bytes; numpy's arrays are not on it. So the names in a
file are compared with a shorter list before torch sees it, and those of numpy stand for nothing: arrays stay unread.
"""

from __future__ import annotations

import codecs
import io
import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import read_regular

if TYPE_CHECKING:
    from torch import Tensor

_MAX_VALUES = 1 << 27
# numpy 1 and numpy 2 name the module differently.
_NUMPY = frozenset(
    {f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")}
    | {"numpy.ndarray", "numpy.dtype"}
)
_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_ALLOWED = (
    _NUMPY
    | {f"torch.{kind}Storage" for kind in _STORAGES}
    | {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "collections.OrderedDict"}
    | {"_codecs.encode"}  # how protocol 2 writes an array's bytes: as text and its encoding
)
# Encodings that make more bytes of bytes: called on their own results, they fill the memory; or that take hours.
_GROWING = frozenset({"base64", "bz2", "hex", "idna", "punycode", "quopri", "uu", "zlib"})
_MAX_OPCODES = 1 << 20
# Calls times what each may be given, which is all that a pickle holds: 16 bytes for each of its own, 128 for each of
# its values, which a dictionary of them takes.
_MAX_MADE = 1 << 32


class Unread:
    """Stands for an array, a scalar or a dtype of numpy, whatever it held."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def load(path: Path, limit: int) -> Any:
    """What torch.save wrote into a file, its tensors on the CPU, its numpy arrays as `Unread`.

    Raises:
        HybridError: where there is no such file of at most `limit` bytes, or it holds more than tensors and plain data.
    """
    import torch

    data = read_regular(path, limit)
    _check(path, data)
    try:
        with _arrays_unread():
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # Whatever a broken or hostile pickle makes of the unpickler: it has many ways to fail.
    except Exception as error:
        raise HybridError(
            f"{path}: must hold tensors and plain data; found {_brief(error)}; save it again with torch.save"
        ) from None


def as_float32(value: Any, what: str) -> Tensor:
    """A copy of a tensor from a file: float32, of the same shape, finite.

    Args:
        what: it is, for messages.

    Raises:
        HybridError: where it is no tensor of floating-point numbers, or one of them is not finite as float32.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        raise HybridError(f"{what} must be a tensor; found {type(value).__name__}; use another file")
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    # A view of one value can have any shape, and a copy of it any size.
    if value.layout != torch.strided or value.dtype not in floats or value.numel() > _MAX_VALUES or _repeats(value):
        raise HybridError(
            f"{what} must be a dense tensor of floating-point numbers, at most {_MAX_VALUES:,}; found {value.dtype} "
            f"{list(value.shape)}; convert it"
        )
    copy = value.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    bad = copy.numel() - int(copy.isfinite().sum())
    if bad:
        raise HybridError(
            f"{what} must be finite as float32; found {bad} NaN or infinite of {copy.numel()} values; use another file"
        )
    return copy


def _repeats(value: Tensor) -> bool:
    """Whether a tensor shows bytes more than once: a small file would become a large tensor."""
    return value.is_meta or value.numel() * value.element_size() > value.untyped_storage().nbytes()


@contextmanager
def _arrays_unread() -> Iterator[None]:
    """numpy's names stand for `Unread` meanwhile, and what else was allowed in this process is not."""
    from torch import serialization

    former = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    try:
        with serialization.safe_globals([(Unread, name) for name in sorted(_NUMPY)]):
            yield
    finally:
        serialization.add_safe_globals(former)


def _check(path: Path, data: bytes) -> None:
    """HybridError where the file asks for more than tensors, or could unfold into more bytes than it has."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        parts = archive.infolist()
        pickles = [part for part in parts if part.filename.casefold().endswith("data.pkl")]
        packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
        names = {part.filename.casefold() for part in parts}  # torch does not tell A from a
        if packed or len(pickles) != 1 or len(names) < len(parts) or sum(part.file_size for part in parts) > len(data):
            raise HybridError(f"{path}: must be as torch.save writes it; found another archive; save it again")
        problem = _problem(archive.read(pickles[0]))
    except HybridError:
        raise
    except Exception as error:  # a broken archive raises errors of any kind
        raise HybridError(
            f"{path}: must be a file that torch.save wrote (torch 1.6 or newer); found {_brief(error)}; save it again"
        ) from None
    if problem is not None:
        raise HybridError(f"{path}: must hold tensors and plain data; found {problem}; get it from someone you trust")


def _problem(pickle: bytes) -> str | None:
    """What in the bytes of a pickle is not on the list, without running it."""
    calls = 0
    for number, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
        calls += opcode.name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD")
        if number > _MAX_OPCODES or calls * (16 * len(pickle) + 128 * number) > _MAX_MADE:
            return "far more than tensors need"
        if opcode.name == "GLOBAL":
            name = str(argument).replace(" ", ".", 1)
            if name not in _ALLOWED:
                return f"a call of {name[:80]}"
        elif opcode.name in ("STACK_GLOBAL", "INST"):  # the other ways to a name, which torch.save does not take
            return "a call that torch.save does not write"
        elif isinstance(argument, str) and _grows(argument):
            return f"the encoding {argument}"
    return None


def _grows(text: str) -> bool:
    if len(text) > 40:
        return False
    try:
        return codecs.lookup(text).name in _GROWING
    except (LookupError, ValueError):
        return False


def _brief(error: Exception) -> str:
    # torch puts its own reason after a page of advice.
    reason = str(error).rsplit("WeightsUnpickler error:", 1)[-1].strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {' '.join(reason.split())[:120]}"
