"""A behavior bundle: a manifest and its tensors, checked against each other, loaded and saved as a folder.

A `Bundle` is sound by construction: names, shapes, dtypes and finiteness of its tensors are checked when it
is built, whether it comes from a file or from discovery. Loading checks digests besides, on the very bytes it
then parses. Saving is atomic (a sibling folder, renamed) and writes the same bytes for the same content.
torch and safetensors are imported only where tensors are touched.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.behaviors import card
from lm_eval_hybrid.behaviors.manifest import MANIFEST_FILE, Manifest, dump, read
from lm_eval_hybrid.errors import HybridError

if TYPE_CHECKING:
    from torch import Tensor

TENSORS_FILE = "tensors.safetensors"
CARD_FILE = "README.md"


@dataclass(frozen=True, eq=False)
class Bundle:
    """Tensors that steer a base model, and the manifest that says what they are.

    tensors, all float32: `bias` [d_base], `vector.<key>` [d_base] for each behavior, `sae.encoder.weight`
    [latents, d_thinking], `sae.encoder.bias` [latents], `sae.decoder.weight` [d_thinking, latents],
    `sae.decoder.bias` [d_thinking], `sae.mean` [d_thinking]; and, needed for select `mlp`, a coefficient
    network of any width m: `coefficient.trunk.weight` [m, d_base], `coefficient.trunk.bias` [m],
    `coefficient.heads.weight` [latents, m], `coefficient.heads.bias` [latents].

    path: the folder it was loaded from or saved to, None before that.
    manifest_sha256: digest of the behavior.yaml there, None before that.

    Raises HybridError where the tensors are not exactly those.
    """

    manifest: Manifest
    tensors: dict[str, Tensor]
    path: Path | None = None
    manifest_sha256: str | None = None

    def __post_init__(self) -> None:
        where = self.path or f"{self.manifest.name}@{self.manifest.version}"
        _check_tensors(self.manifest, self.tensors, where)

    @property
    def bias(self) -> Tensor:
        """The bias vector, [d_base] float32."""
        return self.tensors["bias"]

    @property
    def vectors(self) -> Tensor:
        """The steering vectors, [latents, d_base] float32, row = latent; zeros where it has no name."""
        rows = self.bias.new_zeros(self.manifest.sae.latents, self.bias.shape[0])
        for behavior in self.manifest.behaviors:
            rows[behavior.latent] = self.tensors[behavior.tensor]
        return rows

    @property
    def keys(self) -> tuple[str, ...]:
        """The behavior's key for every latent, `latent-N` where no behavior names latent N."""
        named = {behavior.latent: behavior.key for behavior in self.manifest.behaviors}
        return tuple(named.get(latent, f"latent-{latent}") for latent in range(self.manifest.sae.latents))

    @property
    def identity(self) -> str:
        """`name@version#` and 12 hex digits of the manifest's sha256, which covers every file."""
        digest = self.manifest_sha256 or _sha256(self._contents()[MANIFEST_FILE])
        return f"{self.manifest.name}@{self.manifest.version}#{digest[:12]}"

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """The bundle in the folder `path`, tensors on the CPU. HybridError where anything is amiss."""
        folder = Path(path)
        manifest, manifest_bytes = read(folder)
        if TENSORS_FILE not in manifest.files:
            raise HybridError(
                f"{folder}: the manifest must give the digest of {TENSORS_FILE} under files; found "
                f"{sorted(manifest.files) or 'none'}; write bundles with Bundle.save"
            )
        contents = {name: _verified(folder / name, digest) for name, digest in manifest.files.items()}
        tensors = _parse_tensors(contents[TENSORS_FILE], folder)
        bundle = cls(manifest, tensors, folder, _sha256(manifest_bytes))
        _check_norms(bundle)
        return bundle

    def save(self, path: str | Path, overwrite: bool = False) -> Bundle:
        """Write the bundle as the folder `path` (manifest, tensors, card) and return it as it stands there.

        File digests and vector norms are filled in. The folder appears whole or not at all. A folder that is
        already there is replaced only with `overwrite`, and only where it is a bundle; else HybridError.
        """
        folder = Path(path).resolve()
        check_target(folder, overwrite)
        folder.parent.mkdir(parents=True, exist_ok=True)
        mark = f".{folder.name}.{secrets.token_hex(4)}"
        staging, former = folder.with_name(f"{mark}.new"), folder.with_name(f"{mark}.old")
        try:
            staging.mkdir()
            for name, data in self._contents().items():
                (staging / name).write_bytes(data)
            saved = replace(Bundle.load(staging), path=folder)
            if folder.exists():
                folder.rename(former)
            try:
                staging.rename(folder)
            except OSError:
                if former.exists():
                    former.rename(folder)
                raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)
        return saved

    def _contents(self) -> dict[str, bytes]:
        """The bytes of every file, by name; the manifest last, for it holds the digests of the others."""
        from safetensors.torch import save

        # Copies, since safetensors refuses views and tensors that share memory; it sorts them itself.
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        behaviors = tuple(
            behavior.model_copy(update={"norm": _norm(tensors[behavior.tensor])})
            for behavior in self.manifest.behaviors
        )
        manifest = self.manifest.model_copy(update={"behaviors": behaviors})
        contents = {TENSORS_FILE: save(tensors), CARD_FILE: card.render(manifest).encode()}
        files = {name: _sha256(data) for name, data in contents.items()}
        return {**contents, MANIFEST_FILE: dump(manifest.model_copy(update={"files": files}))}


def tensor_shapes(manifest: Manifest, network: int | None = None) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a bundle, by name; `network` is its coefficient network's width, if any."""
    base, thinking, latents = manifest.base.hidden_size, manifest.thinking.hidden_size, manifest.sae.latents
    shapes: dict[str, tuple[int, ...]] = {
        "bias": (base,),
        **{behavior.tensor: (base,) for behavior in manifest.behaviors},
        "sae.encoder.weight": (latents, thinking),
        "sae.encoder.bias": (latents,),
        "sae.decoder.weight": (thinking, latents),
        "sae.decoder.bias": (thinking,),
        "sae.mean": (thinking,),
    }
    if network is not None:
        shapes |= {
            "coefficient.trunk.weight": (network, base),
            "coefficient.trunk.bias": (network,),
            "coefficient.heads.weight": (latents, network),
            "coefficient.heads.bias": (latents,),
        }
    return shapes


def _check_tensors(manifest: Manifest, tensors: dict[str, Tensor], where: object) -> None:
    import torch

    given = any(name.startswith("coefficient.") for name in tensors)
    trunk = tensors.get("coefficient.trunk.bias")
    width = 0 if trunk is None else trunk.numel()  # 0 goes no further: the missing name is reported first
    shapes = tensor_shapes(manifest, width if given or manifest.steering.select == "mlp" else None)
    if tensors.keys() != shapes.keys():
        missing, extra = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
        raise HybridError(
            f"{where}: tensors must be exactly those the manifest requires; missing {missing}, "
            f"unexpected {extra}; make the tensors and the manifest agree"
        )
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise HybridError(
                f"{where}: tensor {name} must have shape {list(shape)} by the manifest's hidden sizes and "
                f"latents; found {list(tensor.shape)}; make the tensors and the manifest agree"
            )
        if tensor.dtype != torch.float32:
            raise HybridError(f"{where}: tensor {name} must be float32; found {tensor.dtype}; convert it with .float()")
        if not bool(tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).sum())
            raise HybridError(
                f"{where}: tensor {name} must be finite; found {bad} NaN or infinite of {tensor.numel()} "
                "values; train or copy the bundle again"
            )


def _check_norms(bundle: Bundle) -> None:
    for behavior in bundle.manifest.behaviors:
        norm = _norm(bundle.tensors[behavior.tensor])
        if not math.isclose(norm, behavior.norm, rel_tol=1e-4, abs_tol=1e-6):
            raise HybridError(
                f"{bundle.path}: {behavior.tensor} must have the norm its manifest gives, {behavior.norm:g}; "
                f"found {norm:g}; write bundles with Bundle.save"
            )


def _verified(path: Path, digest: str) -> bytes:
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise HybridError(f"{path}: the manifest lists this file; found none; copy the whole bundle again") from None
    if _sha256(data) != digest:
        raise HybridError(
            f"{path}: the manifest requires sha256 {digest[:12]}...; found {_sha256(data)[:12]}...; "
            "copy the bundle again, or save it anew if the change is yours"
        )
    return data


def _parse_tensors(data: bytes, folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except SafetensorError as error:
        raise HybridError(
            f"{folder / TENSORS_FILE}: must be a safetensors file; found {error}; copy the bundle again"
        ) from None


def check_target(folder: Path, overwrite: bool) -> None:
    """HybridError where `Bundle.save(folder, overwrite)` would refuse the folder: worth asking before long work."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / MANIFEST_FILE).is_file():
        raise HybridError(f"{folder}: a bundle needs a new folder; found something else there; choose another path")
    if not overwrite:
        raise HybridError(
            f"{folder}: a bundle needs a new folder; found a bundle there; choose another version, or overwrite it"
        )


def _norm(vector: Tensor) -> float:
    # Six digits, so that the last bits of a sum, which differ between machines, do not reach the manifest.
    return float(f"{vector.double().norm().item():.6g}")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
