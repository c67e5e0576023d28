"""A model whose weights a server holds: its tokenizer and weightless skeleton are here."""

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
from lm_eval_hybrid.models.ndif.client import Connection, Server, Traffic, run_with_retries
from lm_eval_hybrid.portable import fitting, programs

_COMPARED = ("hidden_size", "num_hidden_layers", "vocab_size", "model_type")

Attempt = Callable[[Backend], dict[str, Any]]
"""Runs one session through a backend of nnsight's, and returns what the session saved."""


class NdifModel:
    """A causal language model on a server; implements `protocol.RemoteBackend`.

    Args:
        model: nnsight's, without weights, and with the model's tokenizer.
        name: the model's id, as the server knows it.
        role: base or thinking, for messages.
        submit: makes attempts until one succeeds; see `client.run_with_retries`.
        traffic: where `submit` counts requests.

    Attributes:
        skeleton: the model without its weights.
        weights: digest of a sample of the server's weights.
        device, context_length, parameters: see `protocol.LanguageModel`. Answers arrive on the CPU.

    Raises:
        HybridError: as `layers_of` and `check_attention`; the server has another model; and as `submit`.
    """

    is_remote: Literal[True] = True

    def __init__(
        self,
        model: TransformersModel,
        name: str,
        role: str,
        submit: Callable[[Attempt], dict[str, Any]],
        traffic: Traffic,
    ) -> None:
        self._model = model
        self._role = role
        self._submit = submit
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
        register(portable)  # whatever a program calls there is then sent along
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
        """The model that a server knows as `name`: a hub id, or a folder on the server.

        Args:
            revision: None: the server's choice.
        """
        # nnsight would ask the hub for the canonical spelling of an id; ours is the user's, or a folder.
        huggingface._ID_CACHE.setdefault(name, name)
        options = {"trust_remote_code": True} if trust_remote_code else {}
        model = TransformersModel(name, revision=revision, task="text-generation", tokenizer=tokenizer, **options)
        key, env = model.to_model_key(), model._remoteable_get_env()
        traffic = Traffic()

        def submit(attempt: Attempt) -> dict[str, Any]:
            return run_with_retries(server, role, traffic, lambda: attempt(Connection(server, key, env, traffic)))

        return cls(model, name, role, submit, traffic)

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
        """Check that the server's model is the skeleton's, and return the digest of its weights."""
        answer = self._run(programs.describe, {"names": _COMPARED})
        config = self.config.get_text_config()
        ours = {name: getattr(config, name, None) for name in _COMPARED}
        if answer["config"] != ours:
            raise HybridError(
                f"the server's {self.name} has {answer['config']}, the {self._role} model here has {ours}; name the "
                "model that the server has"
            )
        return str(answer["weights"])

    def _run(self, program: Any, given: dict[str, Any]) -> dict[str, Any]:
        model, path = self._model, self._path

        def attempt(backend: Backend) -> dict[str, Any]:
            # The body may name locals only: all that it names is sent, and `self` would go as a whole.
            with model.session(backend=backend):
                answer = program(model, path, given)
                answer.save()
            return answer

        return self._submit(attempt)
