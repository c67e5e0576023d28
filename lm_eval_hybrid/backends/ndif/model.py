"""One model that a server holds: its skeleton and tokenizer are here, its weights are not."""

import sys
from typing import Any

import torch
from nnsight.modeling import huggingface
from nnsight.modeling.transformers import TransformersModel
from nnsight.ndif import register
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lm_eval_hybrid.backends.local import layers_of
from lm_eval_hybrid.backends.masks import Masks
from lm_eval_hybrid.backends.ndif import programs
from lm_eval_hybrid.backends.ndif.server import Server, Traffic, ask
from lm_eval_hybrid.errors import HybridError

_SHOWN = ("hidden_size", "num_hidden_layers", "vocab_size", "model_type")


class NdifModel:
    """A causal language model on a server.

    Args:
        name: the model's id, as the server knows it: a hub id, or a folder of the server's.
        revision: of it; None: the server's own choice.
        tokenizer: the model's.
        role: base or thinking, for messages.

    Attributes:
        traffic: what was asked of it so far.
        device, context_length, parameters: as of `protocol.Backend`; what it says arrives on the CPU.

    Raises:
        HybridError: for an architecture whose layers cannot be found, or whose past is not one of keys and values.
    """

    def __init__(
        self,
        name: str,
        revision: str | None,
        tokenizer: PreTrainedTokenizerBase,
        server: Server,
        role: str,
        trust_remote_code: bool = False,
    ) -> None:
        # nnsight asks the hub how an id is spelt there; here it is as the user spelt it, and a folder is no id.
        huggingface._ID_CACHE.setdefault(name, name)
        options = {"trust_remote_code": True} if trust_remote_code else {}
        self._model = TransformersModel(name, revision=revision, task="text-generation", tokenizer=tokenizer, **options)
        self.skeleton = self._model._module
        self.config: PretrainedConfig = self.skeleton.config
        self.name = name
        self.tokenizer = tokenizer
        self.server = server
        self.traffic = Traffic()
        self.device = torch.device("cpu")
        self.dtype: torch.dtype = self.skeleton.dtype
        self.parameters: int = self.skeleton.num_parameters()
        self.context_length: int = (
            getattr(self.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
        )
        self._key = self._model.to_model_key()
        self._role = role
        self._path, layers = layers_of(self._model, self.skeleton)
        self.layers = len(layers)
        Masks.of(self.skeleton)
        for module in programs.SHIPPED:
            register(module)
        self.weights = self._check()

    def draft(self, given: dict[str, Any]) -> dict[str, Any]:
        """See `programs.draft`."""
        return self._run(programs.draft, given)

    def read(self, given: dict[str, Any]) -> dict[str, Any]:
        """See `programs.read`."""
        return self._run(programs.read, given)

    def residuals(self, given: dict[str, Any]) -> dict[str, Any]:
        """See `programs.residuals`."""
        return self._run(programs.residuals, given)

    def _check(self) -> str:
        """See that the server's model is the one that the skeleton is of; returns a digest of its weights."""
        found = self._run(programs.describe, {"names": _SHOWN})
        config = self.config.get_text_config()
        ours = {name: getattr(config, name, None) for name in _SHOWN}
        if found["config"] != ours:
            raise HybridError(
                f"the {self._role} model at {self.server.host} must be {self._model.repo_id}, with {ours}; found one "
                f"with {found['config']}; name the model that it serves"
            )
        return str(found["weights"])

    def _run(self, program: Any, given: dict[str, Any]) -> dict[str, Any]:
        model, path, key = self._model, self._path, self._key

        def attempt(wire: Any) -> dict[str, Any]:
            wire.model_key, wire.env = key, model._remoteable_get_env()
            # The body sees locals only: all it names is sent, and `self` would go as a whole.
            with model.session(backend=wire):
                answer = program(model, path, given)
                answer.save()
            return answer

        return ask(self.server, self._role, self.traffic, attempt)
