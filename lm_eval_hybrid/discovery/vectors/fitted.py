"""What one seed's fit found, and its files."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.decoding.steering import CoefficientNetwork
from lm_eval_hybrid.discovery.vectors.descent import Point

TENSORS_FILE, CURVES_FILE = "vectors.safetensors", "curves.json"
_NETWORK = "network."


@dataclass(frozen=True)
class Fitted:
    """Bias, vectors and network, float32 on the CPU.

    Attributes:
        bias: [d_base]; vectors: [latents, d_base].
        network: of the recipe `disagreement`.
        curves: of the bias and of the vectors, an epoch a point.
    """

    bias: Tensor
    vectors: Tensor
    network: CoefficientNetwork | None
    curves: dict[str, list[Point]]

    def save(self, folder: Path) -> None:
        """Writes both files into a folder."""
        tensors = {"bias": self.bias, "vectors": self.vectors}
        if self.network is not None:
            tensors |= {f"{_NETWORK}{name}": tensor for name, tensor in asdict(self.network).items()}
        curves = {name: [asdict(point) for point in curve] for name, curve in self.curves.items()}
        write_file(folder / CURVES_FILE, json.dumps(curves).encode())
        write_file(folder / TENSORS_FILE, save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    @classmethod
    def load(cls, folder: Path) -> "Fitted":
        """What was saved there."""
        tensors = load_file(folder / TENSORS_FILE)
        network = {name.removeprefix(_NETWORK): t for name, t in tensors.items() if name.startswith(_NETWORK)}
        curves = json.loads((folder / CURVES_FILE).read_bytes())
        return cls(
            tensors["bias"],
            tensors["vectors"],
            CoefficientNetwork(**network) if network else None,
            {name: [Point(**point) for point in curve] for name, curve in curves.items()},
        )
