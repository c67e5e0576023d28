"""A behavior bundle: a manifest and its tensors, loaded from and saved as a folder.

A `Bundle` is sound by construction, whether it comes from a file or from discovery: building one checks names, shapes,
dtypes and finiteness of its tensors. Loading also checks digests, of the very bytes that are parsed. Saving is atomic
and writes the same bytes for the same content. torch is imported only when tensors are used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid import __version__
from lm_eval_hybrid.bundles import card, contents
from lm_eval_hybrid.bundles.contents import CARD_FILE, TENSORS_FILE
from lm_eval_hybrid.bundles.manifest import MANIFEST_FILE, Manifest, dump
from lm_eval_hybrid.common import files
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Bundle:
    """Tensors that steer a base model, and the manifest that describes them.

    Attributes:
        tensors: all float32: `bias` [d_base], `vector.<key>` [d_base] for each behavior, `sae.encoder.weight`
            [latents, d_thinking], `sae.encoder.bias` [latents], `sae.decoder.weight` [d_thinking, latents],
            `sae.decoder.bias` [d_thinking], `sae.mean` [d_thinking]; and a coefficient network of any width m, which
            select `mlp` needs: `coefficient.trunk.weight` [m, d_base], `coefficient.trunk.bias` [m],
            `coefficient.heads.weight` [latents, m], `coefficient.heads.bias` [latents].
        path: the folder it was loaded from or saved to, None before that.
        manifest_sha256: digest of the behavior.yaml there, None before that.

    Raises HybridError unless the tensors are exactly those.
    """

    manifest: Manifest
    tensors: dict[str, Tensor]
    path: Path | None = None
    manifest_sha256: str | None = None

    def __post_init__(self) -> None:
        where = self.path or f"{self.manifest.name}@{self.manifest.version}"
        for fault in contents.tensor_faults(self.manifest, self.tensors):
            raise HybridError(f"{where}: {fault}")

    @property
    def bias(self) -> Tensor:
        """The bias vector, [d_base] float32."""
        return self.tensors["bias"]

    @property
    def identity(self) -> str:
        """`name@version#` and 12 hex digits of the manifest's sha256, which covers every file."""
        digest = self.manifest_sha256 or contents.sha256(self.encoded()[MANIFEST_FILE])
        return f"{self.manifest.name}@{self.manifest.version}#{digest[:12]}"

    @classmethod
    def load(cls, path: str | Path, sealed: bool = True) -> Bundle:
        """The bundle in the folder `path`, its tensors on the CPU.

        Args:
            sealed: check digests and norms, too.

        Raises HybridError for the first fault.
        """
        import torch

        found = contents.read(Path(path), sealed)
        tensors = {name: torch.from_numpy(array) for name, array in found.tensors.items()}
        return cls(found.manifest, tensors, Path(path), found.manifest_sha256)

    def save(self, path: str | Path, overwrite: bool = False) -> Bundle:
        """Write the bundle as the folder `path` (manifest, tensors, card), and return it as it is there.

        Fills in file digests and vector norms. The folder appears whole or not at all. Replaces an existing folder
        only with `overwrite`, and only if it is a bundle; raises HybridError otherwise.
        """
        folder = Path(path).resolve()
        check_target(folder, overwrite)
        with files.atomic_folder(folder) as staging:
            files.write_files(staging, self.encoded())
            saved = Bundle.load(staging)
        return replace(saved, path=folder)

    def encoded(self) -> dict[str, bytes]:
        """The bytes of every file, by name; the manifest last, since it holds the others' digests."""
        from safetensors.torch import save

        # Copies, since safetensors refuses views and shared memory.
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        behaviors = tuple(
            behavior.model_copy(update={"norm": contents.norm(tensors[behavior.tensor])})
            for behavior in self.manifest.behaviors
        )
        manifest = self.manifest.model_copy(update={"behaviors": behaviors, "written_by": __version__})
        encoded = {TENSORS_FILE: save(tensors), CARD_FILE: card.render(manifest).encode()}
        digests = {name: contents.sha256(data) for name, data in encoded.items()}
        return {**encoded, MANIFEST_FILE: dump(manifest.model_copy(update={"files": digests}))}


def check_target(folder: Path, overwrite: bool) -> None:
    """Raise HybridError if `Bundle.save(folder, overwrite)` would refuse the folder: call it before long work."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / MANIFEST_FILE).is_file():
        raise HybridError(f"{folder}: exists and is not a bundle; a bundle needs a new folder; choose another path")
    if not overwrite:
        raise HybridError(f"{folder}: a bundle is there already; choose another version, or overwrite it")
