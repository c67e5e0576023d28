"""Reading what a server sends, tensors and plain data, and nothing else.

nnsight reads answers with an unpickler that runs whatever is in them. A server that a client reads prompts from need
not be one that it runs code of: here, what an answer may be made of is listed. (`torch.load`'s own `weights_only` does
not read the pickle protocol that nnsight writes.)
"""

import io
import pickle
import zipfile
from types import SimpleNamespace
from typing import Any

import torch

_KNOWN = {
    ("collections", "OrderedDict"),
    ("nnsight.schema.response", "Status"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_tensor_v2"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"an answer may hold tensors and plain data; found {module}.{name}")
        return super().find_class(module, name)


def load(content: bytes) -> Any:
    """What `torch.save` wrote, on the CPU.

    Raises:
        pickle.UnpicklingError: it holds anything else than tensors, numbers, strings, bytes, lists, tuples and dicts.
        ValueError: it is not whole.
    """
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError(f"an answer of {len(content)} bytes that torch.save did not write, or that is not whole")
    reader = SimpleNamespace(__name__=__name__, Unpickler=_Unpickler, UnpicklingError=pickle.UnpicklingError)
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False, pickle_module=reader)
