"""Where the two models of a system come from."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from accelerate.utils.memory import should_reduce_batch_size

from lm_eval_hybrid.bundles.manifest import ModelCard
from lm_eval_hybrid.common import paths
from lm_eval_hybrid.common.errors import HybridError

_EMBEDDED = "embedded:"
# One of these makes a tokenizer: the fast form, or the files that it is made from.
_WEIGHTS = (".safetensors", ".bin", ".gguf")
_BLOCK = 1 << 20  # bytes
_BLOCKS = 256  # read of each file of weights for its digest: all of a small one, evenly spread over a large one
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


@dataclass(frozen=True)
class Source:
    """One model: `role` is `base` or `thinking`, `name` a folder or a hub id."""

    role: str
    name: str
    revision: str

    @classmethod
    def choose(cls, role: str, override: str | Path | None, card: ModelCard, revision: str | None = None) -> "Source":
        """The model that the user names, else the bundle's."""
        return cls.named(role, str(override or card.id), revision or (None if override else card.revision))

    @classmethod
    def named(cls, role: str, name: str, revision: str | None = None) -> "Source":
        """The model in a folder, on the hub, or, as `embedded:NAME`, in the package."""
        if name.startswith(_EMBEDDED):
            name = str(paths.embedded_dir() / name.removeprefix(_EMBEDDED))
        return cls(role, name, revision or "main")

    def identity(self, config: object) -> str:
        """What says whether another run's model was the same one: `NAME@COMMIT`, or `FOLDER@DIGEST` of its weights.

        Args:
            config: the loaded model's; transformers notes the commit in it where the model came from the hub.
        """
        folder = Path(self.name).expanduser()
        if not folder.is_dir():
            return f"{self.name}@{getattr(config, '_commit_hash', None) or self.revision}"
        embedded = folder.parent == paths.embedded_dir()
        return f"{_EMBEDDED + folder.name if embedded else folder.resolve()}@{_digest(folder)}"

    @contextmanager
    def loading(self, needs_tokenizer: bool = True) -> Iterator[None]:
        """Say in one line why what happens inside could not load this model.

        Raises:
            HybridError: no such folder, no tokenizer in it, or whatever kept transformers from loading the model,
                running out of memory excepted.
        """
        folder = Path(self.name).expanduser()
        if self.name.startswith(("/", ".", "~")) and not folder.is_dir():
            self._complain("no such folder")
        if needs_tokenizer and folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZERS):
            self._complain("a folder without tokenizer (tokenizer.json)")
        try:
            yield
        except (HybridError, MemoryError):
            raise
        # Model arguments go to many libraries, which fail in as many ways: dtype=bf16 is an AttributeError.
        except Exception as error:
            if should_reduce_batch_size(error):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._complain(reason, error)

    def _complain(self, found: str, cause: Exception | None = None) -> None:
        raise HybridError(
            f"the {self.role} model and its tokenizer must be loadable from {self.name}; found: {found}; give "
            f"{self.role}=<folder with config.json, weights and tokenizer, or hub id>, and model arguments that fit it"
        ) from cause


def _digest(folder: Path) -> str:
    """The first 12 hex digits of a sha256 over names, sizes and contents of the weights in `folder`."""
    digest = sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for start in (*range(0, size, max(_BLOCK, size // _BLOCKS)), max(0, size - _BLOCK)):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:12]
