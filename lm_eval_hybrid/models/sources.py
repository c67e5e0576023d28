"""Where a model is loaded from, what identifies it, and one-line errors for what keeps it from loading."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

from accelerate.utils.memory import should_reduce_batch_size

from lm_eval_hybrid.bundles.manifest import ModelCard
from lm_eval_hybrid.common import paths
from lm_eval_hybrid.common.errors import HybridError

_WEIGHTS = (".safetensors", ".bin", ".gguf")
_BLOCK = 1 << 20  # bytes
_BLOCKS = 256  # per file of weights in its digest: all of a small file, evenly spread over a large one
# Any of these makes a tokenizer: the fast form, or the files that it is converted from.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


@dataclass(frozen=True)
class ModelSource:
    """One model to load: `role` is `base` or `thinking`, `name` a folder or a hub id."""

    role: str
    name: str
    revision: str

    @classmethod
    def choose(
        cls, role: str, override: str | Path | None, card: ModelCard, revision: str | None = None
    ) -> "ModelSource":
        """The model that the user names, else the bundle's."""
        return cls.named(role, str(override or card.id), revision or (None if override else card.revision))

    @classmethod
    def named(cls, role: str, name: str, revision: str | None = None) -> "ModelSource":
        """The model in a folder, on the hub, or, as `embedded:NAME`, in this package."""
        return cls(role, paths.model_path(name), revision or "main")

    def identity(self, config: object) -> str:
        """Equal for two runs if they used the same model: `NAME@COMMIT`, or `FOLDER@DIGEST` of the weights.

        Args:
            config: the loaded model's, in which transformers notes the commit of a model from the hub.
        """
        folder = Path(self.name).expanduser()
        if not folder.is_dir():
            return f"{self.name}@{getattr(config, '_commit_hash', None) or self.revision}"
        return f"{paths.EMBEDDED + folder.name if self.embedded else folder.resolve()}@{_digest(folder)}"

    @property
    def embedded(self) -> bool:
        """Whether it is a model of the embedded pair."""
        return Path(self.name).expanduser().parent == paths.embedded_dir()

    @contextmanager
    def loading(self, needs_tokenizer: bool = True) -> Iterator[None]:
        """Turn whatever keeps this model from loading inside the block into a one-line error.

        Raises:
            HybridError: the folder does not exist or has no tokenizer, or transformers could not load the model (for
                another reason than running out of memory).
        """
        folder = Path(self.name).expanduser()
        local = folder.is_absolute() or self.name.startswith(("/", ".", "~"))
        if local and not folder.is_dir():
            self._refuse("no such folder")
        if needs_tokenizer and folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZERS):
            self._refuse("the folder has no tokenizer (tokenizer.json)")
        try:
            yield
        except (HybridError, MemoryError):
            raise
        # Model arguments reach many libraries, which fail in as many ways: dtype=bf16 is an AttributeError.
        except Exception as error:
            if should_reduce_batch_size(error):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._refuse(reason, error)

    def _refuse(self, reason: str, cause: Exception | None = None) -> NoReturn:
        raise HybridError(
            f"cannot load the {self.role} model and its tokenizer from {self.name}: {reason}; give {self.role}=<folder "
            "with config.json, weights and tokenizer, or hub id>, and model arguments that fit it"
        ) from cause


def _digest(folder: Path) -> str:
    """The first 12 hex digits of a sha256 over the names, sizes and contents of the weights in `folder`."""
    digest = sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for start in (*range(0, size, max(_BLOCK, size // _BLOCKS)), max(0, size - _BLOCK)):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:12]
