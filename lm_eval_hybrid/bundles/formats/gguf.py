"""Control vectors of llama.cpp and repeng: a GGUF file of architecture `controlvector` with tensors `direction.N`.

N counts layers from 0, as a bundle does: the direction is added to the output of layer N (repeng wraps layer N of the
model's list; llama.cpp adds after block `il` = N). llama.cpp has none for layer 0 and refuses a file that has one.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.bundles.formats import direction
from lm_eval_hybrid.bundles.formats.direction import Direction
from lm_eval_hybrid.common import files
from lm_eval_hybrid.common.errors import HybridError, brief

if TYPE_CHECKING:
    import numpy as np

    from lm_eval_hybrid.bundles.bundle import Bundle
    from lm_eval_hybrid.bundles.formats.convert import ExportOptions, ImportOptions

ARCHITECTURE = "controlvector"
_MAX_BYTES = 1 << 26  # 64 MiB; vectors for all layers of the largest models need a tenth of it
_MAX_READS = 1 << 16  # values that the GGUF reader may read; one tensor needs about eight
_NAME = re.compile(r"direction\.(0|[1-9][0-9]{0,5})")


def read(source: Path, options: ImportOptions) -> Bundle:
    """The bundle of one direction, the one for `options.layer` if there are several.

    The gate is `always`, with all positions and coefficient 1: the file states no strength. Raises HybridError if the
    file is unsound, or no direction fits.
    """
    import torch

    hint, directions = _parse(source)
    name = direction.pick(source, {f"direction.{layer}": layer for layer in directions}, options.layer)
    layer = int(name.partition(".")[2])
    vector = direction.vector_of(torch.from_numpy(directions[layer].astype("float32")), f"{source}: {name}")
    of = f" of a model of type {hint}" if hint else ""
    return direction.bundle_of(
        Direction(layer, vector, 1.0),
        options,
        "Control vector",
        f"The control vector {source.name}{of}, added after layer {layer}.",
        f"{source.name}, {name}: control vector, GGUF",
    )


def write(bundle: Bundle, options: ExportOptions, target: Path) -> list[str]:
    """Write coefficient * (bias + vector) of one behavior as a control vector; returns what is lost, a line each.

    Raises HybridError if `target` exists, the bundle steers after layer 0, or the package gguf is missing.
    """
    _require_package()
    from gguf import GGUFWriter

    direction.check_new(target)
    chosen = direction.choose(bundle, options)
    if chosen.layer == 0:
        raise HybridError("the bundle steers after layer 0, which llama.cpp refuses; use --format steered instead")
    hint = model_type(bundle.manifest.base.architecture)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, target.name)
        writer = GGUFWriter(path, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", hint or "unknown")
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", 1)
        writer.add_tensor(f"direction.{chosen.layer}", (chosen.coefficient * chosen.vector).contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        files.write_file(target, path.read_bytes())
    lost = direction.lost(bundle, chosen)
    lost.append(f"the coefficient {chosen.coefficient:g} as a number: it is multiplied in, so use scale 1")
    if hint is None:
        lost.append("the base model's type, which is written as `unknown`; repeng compares it when it combines vectors")
    return lost


def model_type(architecture: str | None) -> str | None:
    """transformers' name of a model type, such as `qwen2` for Qwen2ForCausalLM; None if it is unknown."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if architecture is None or architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return architecture  # such a bundle stores the model type instead of the class name
    types = [type for type, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name == architecture]
    # Some types share a class: gpt-sw3 and gpt2.
    own = [type for type in types if architecture.lower().startswith(type.replace("_", ""))]
    return next(iter(own or types), None)


def _parse(source: Path) -> tuple[str, dict[int, np.ndarray]]:
    """(the model's type or "", directions by layer, mapped from the file).

    Raises HybridError unless the file is a sound control vector.
    """
    files.check_regular(source, _MAX_BYTES)
    _require_package()
    from gguf import GGUFReader

    class Reader(GGUFReader):
        """Reads a bounded number of values: the package's reader loops over whatever counts a file states."""

        reads = 0

        def _get(self, *args: Any, **kwargs: Any) -> Any:
            self.reads += 1
            if self.reads > _MAX_READS:
                raise ValueError("more values than a control vector has")
            return super()._get(*args, **kwargs)

    try:
        reader = Reader(source)
        texts = [reader.get_field(name) for name in ("general.architecture", f"{ARCHITECTURE}.model_hint")]
        architecture, hint = (str(field.contents())[:100] if field else "" for field in texts)
        if architecture != ARCHITECTURE:
            raise ValueError(f"general.architecture is {architecture!r}, not {ARCHITECTURE!r}")
        directions = {int(match[1]): tensor for tensor in reader.tensors if (match := _NAME.fullmatch(tensor.name))}
        if not directions:
            raise ValueError("no tensor direction.N")
        for tensor in directions.values():
            if tensor.tensor_type.name not in ("F32", "F16") or len(tensor.shape) != 1:
                found = f"{tensor.tensor_type.name} {tensor.shape.tolist()}"
                raise ValueError(f"{tensor.name} is {found}, not a vector of F32 or F16")
    except Exception as error:  # the package raises errors of many kinds over broken files
        raise HybridError(f"{source}: {brief(error)}; a control vector's file is needed; export it again") from None
    return hint, {layer: tensor.data for layer, tensor in directions.items()}


def _require_package() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        advice = "pip install 'lm-eval-hybrid[gguf]'"
        raise HybridError(f"the package gguf is missing; control vectors need it; {advice}") from None
