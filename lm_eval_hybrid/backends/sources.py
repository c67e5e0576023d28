"""Where the two models of a system come from."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from lm_eval_hybrid import paths
from lm_eval_hybrid.behaviors.manifest import ModelCard
from lm_eval_hybrid.errors import HybridError

_EMBEDDED = "embedded:"
# One of these makes a tokenizer: the fast form, or the files that it is made from.
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

    @contextmanager
    def loading(self, needs_tokenizer: bool = True) -> Iterator[None]:
        """Say in one line why what happens inside could not load this model.

        Raises:
            HybridError: no such folder, no tokenizer in it, or whatever kept transformers from loading the model.
        """
        folder = Path(self.name).expanduser()
        if self.name.startswith(("/", ".", "~")) and not folder.is_dir():
            self._complain("no such folder")
        if needs_tokenizer and folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZERS):
            self._complain("a folder without tokenizer (tokenizer.json)")
        try:
            yield
        except HybridError:
            raise
        except (OSError, ValueError, SafetensorError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._complain(reason, error)

    def _complain(self, found: str, cause: Exception | None = None) -> None:
        raise HybridError(
            f"the {self.role} model and its tokenizer must be loadable from {self.name}; found: {found}; give "
            f"{self.role}=<folder with config.json, weights and tokenizer, or hub id>"
        ) from cause
