"""One model that a server holds: its skeleton and tokenizer are here, its weights are not."""

import sys
from collections.abc import Callable
from typing import Any, Literal

import torch
from nnsight.modeling import huggingface
from nnsight.modeling.transformers import TransformersModel
from nnsight.ndif import register
from nnsight.tracing.backend import Backend
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_hybrid import portable
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.models.local import check_attention, layers_of
from lm_eval_hybrid.models.ndif.client import Server, Traffic, Wire, ask
from lm_eval_hybrid.portable import fitting, programs

_SHOWN = ("hidden_size", "num_hidden_layers", "vocab_size", "model_type")


Asking = Callable[[Callable[[Backend], dict[str, Any]]], dict[str, Any]]
"""Has a session run through a backend of nnsight's that it chooses, as often as need be; returns what came of it."""


class NdifModel:
    """A causal language model on a server; implements `protocol.RemoteBackend`.

    Args:
        model: nnsight's, without weights; its tokenizer is the model's.
        name: its id, as the server knows it.
        role: base or thinking, for messages.
        traffic: where `asking` counts what was asked.

    Attributes:
        skeleton: the model without its weights.
        weights: a digest of a sample of the server's.
        device, context_length, parameters: as of `protocol.Backend`; what it says arrives on the CPU.

    Raises:
        HybridError: for an architecture whose layers cannot be found, or whose past is not one of keys and values; for
            a server with another model; and what `server.ask` raises.
    """

    is_remote: Literal[True] = True

    def __init__(self, model: TransformersModel, name: str, role: str, asking: Asking, traffic: Traffic) -> None:
        self._model = model
        self._role = role
        self._asking = asking
        self.name = name
        self.traffic = traffic
        self.tokenizer: PreTrainedTokenizerBase = model.tokenizer
        self.skeleton: PreTrainedModel = model._module
        self.config: PretrainedConfig = self.skeleton.config
        self.device = torch.device("cpu")
        self.parameters: int = self.skeleton.num_parameters()
        text_config = self.config.get_text_config()
        self.context_length: int = getattr(text_config, "max_position_embeddings", None) or sys.maxsize
        self._path, self.layers = layers_of(model, self.skeleton)
        check_attention(self.skeleton)
        register(portable)  # so that whatever a program calls of it is sent along
        self.weights = self._check()

    @classmethod
    def at(
        cls,
        server: Server,
        name: str,
        revision: str | None,
        tokenizer: PreTrainedTokenizerBase,
        role: str,
        trust_remote_code: bool = False,
    ) -> "NdifModel":
        """The model that a server knows as `name`: a hub id, or a folder of the server's.

        Args:
            revision: of it; None: the server's own choice.
        """
        # nnsight asks the hub how an id is spelt there; here it is as the user spelt it, and a folder is no id.
        huggingface._ID_CACHE.setdefault(name, name)
        options = {"trust_remote_code": True} if trust_remote_code else {}
        model = TransformersModel(name, revision=revision, task="text-generation", tokenizer=tokenizer, **options)
        key, env = model.to_model_key(), model._remoteable_get_env()
        traffic = Traffic()

        def asking(attempt: Callable[[Backend], dict[str, Any]]) -> dict[str, Any]:
            return ask(server, role, traffic, lambda: attempt(Wire(server, key, env, traffic)))

        return cls(model, name, role, asking, traffic)

    def draft(self, given: dict[str, Any]) -> dict[str, Any]:
        """See `programs.draft`."""
        return self._run(programs.draft, given)

    def read(self, given: dict[str, Any]) -> dict[str, Any]:
        """See `programs.read`."""
        return self._run(programs.read, given)

    def sentences(self, given: dict[str, Any]) -> dict[str, Any]:
        """See `programs.sentences`."""
        return self._run(programs.sentences, given)

    def fit(self, given: dict[str, Any]) -> dict[str, Any]:
        """See `fitting.fit`."""
        return self._run(fitting.fit, given)

    def _check(self) -> str:
        """See that the server's model is the one that the skeleton is of; returns a digest of its weights."""
        found = self._run(programs.describe, {"names": _SHOWN})
        config = self.config.get_text_config()
        ours = {name: getattr(config, name, None) for name in _SHOWN}
        if found["config"] != ours:
            raise HybridError(
                f"the {self._role} model must be the server's {self.name}, with {ours}; found one with "
                f"{found['config']}; name the model that it serves"
            )
        return str(found["weights"])

    def _run(self, program: Any, given: dict[str, Any]) -> dict[str, Any]:
        model, path = self._model, self._path

        def attempt(backend: Backend) -> dict[str, Any]:
            # The body sees locals only: all it names is sent, and `self` would go as a whole.
            with model.session(backend=backend):
                answer = program(model, path, given)
                answer.save()
            return answer

        return self._asking(attempt)
