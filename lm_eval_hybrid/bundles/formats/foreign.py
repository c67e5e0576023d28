"""Read other programs' files as tensors and plain data, up to a size limit; nothing in them is executed.

`torch.load(weights_only=True)` builds only what its list of names allows. No part of a file may be compressed, so the
file's size bounds its tensors. numpy's names stand for a class that drops its arguments: arrays stay unread.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.common.errors import HybridError, brief
from lm_eval_hybrid.common.files import check_regular, read_regular

if TYPE_CHECKING:
    from torch import Tensor

_MAX_VALUES = 1 << 27
_SHOWN = 12  # names in an error
# numpy 1 and numpy 2 name the module differently.
_NUMPY = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "numpy.ndarray",
    "numpy.dtype",
)


class UnreadArray:
    """Placeholder for an array, scalar or dtype of numpy."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def load_torch(path: Path, limit: int) -> Any:
    """The object that torch.save wrote: tensors on the CPU, numpy arrays as `UnreadArray`.

    Raises HybridError if there is no such file of at most `limit` bytes, or it holds more than tensors and plain data.
    """
    import torch

    check_regular(path, limit)
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
            if packed or sum(part.file_size for part in parts) > path.stat().st_size:
                raise ValueError("parts larger than the file, which torch.save does not write")
        with torch.serialization.safe_globals([(UnreadArray, name) for name in _NUMPY]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile file fails in many ways
        cause = error.__context__ or error  # torch's own reason, without its page of advice
        reason = f"{type(cause).__name__}: {brief(str(cause).split('. ', 1)[0])}"
        needed = "it must be a file that torch 1.6 or newer saved; save it again with torch.save"
        raise HybridError(f"{path}: not readable as tensors and plain data ({reason}); {needed}") from None


def load_safetensors(path: Path, data: bytes) -> dict[str, Tensor]:
    """The tensors in a file's bytes. Raises HybridError if it is no safetensors file."""
    from safetensors.torch import load

    try:
        return load(data)
    except Exception as error:  # the parser raises errors of many kinds over broken files
        raise HybridError(f"{path}: not a safetensors file ({brief(error)}); copy it again") from None


def load_json(path: Path, limit: int) -> dict[str, Any]:
    """The object in a JSON file. Raises HybridError if there is none, or the file has more than `limit` bytes."""
    data = read_regular(path, limit)
    try:
        fields = json.loads(data)
        # An escape can be half a character, which no file can be written with.
        json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise HybridError(f"{path}: not JSON ({brief(error)}); copy it again") from None
    if not isinstance(fields, dict):
        raise HybridError(f"{path}: of type {type(fields).__name__}; it must be a JSON object; copy it again")
    return fields


def as_float32(value: Any, what: str) -> Tensor:
    """A copy of a tensor from a file: float32, of the same shape, finite.

    Args:
        what: the tensor's name, for errors.

    Raises HybridError if it is no tensor of floating-point numbers, or one of them is not finite as float32.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        raise HybridError(f"{what} is of type {type(value).__name__}; it must be a tensor; use another file")
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    dense = value.layout == torch.strided and value.dtype in floats and value.numel() <= _MAX_VALUES
    # A view that repeats values can have any shape, and a copy of it any size.
    if not dense or value.is_meta or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        needed = f"it must be a dense tensor of at most {_MAX_VALUES:,} floating-point numbers"
        raise HybridError(f"{what} is {value.dtype} {list(value.shape)}; {needed}; convert it")
    copy = value.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    bad = copy.numel() - int(copy.isfinite().sum())
    if bad:
        found = f"{bad} NaN or infinite of {copy.numel()} values"
        raise HybridError(f"{what} has {found}; as float32 all must be finite; use another file")
    return copy


def chosen(where: object, latents: Sequence[int] | None, known: Sequence[int]) -> tuple[int, ...]:
    """`latents`, or all known ones if it is None. Raises HybridError if one is unknown, or there are none."""
    unknown = [latent for latent in latents or () if latent not in known]
    if unknown or (latents is not None and not latents):
        found = f"no latent {few(unknown)}" if unknown else "no latent is named"
        raise HybridError(f"{where}: {found}; there are {few(known)}; choose some of them with --latents")
    return tuple(known if latents is None else latents)


def few(names: Iterable[object]) -> str:
    """The first names for an error, and the number of others."""
    listed = list(names)
    more = len(listed) - _SHOWN
    shown = (text[:80] if text.isprintable() else ascii(text)[:80] for text in map(str, listed[:_SHOWN]))
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
