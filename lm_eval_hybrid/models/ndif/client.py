"""Runs a program on an NDIF server, and retries when the request or its answer is lost.

A request changes nothing on the server, so it can be repeated whenever its fate is unknown: the server is down or
restarting, the model is being moved, the connection breaks, no answer comes. What the server refuses, or the program
itself cannot do, is raised at once.

nnsight reads answers with an unpickler that runs whatever is in them. A server that reads our prompts need not be one
whose code we run, so here an answer may consist of listed types only. (`torch.load(weights_only=True)` cannot read the
pickle protocol that nnsight writes.)
"""

import io
import json
import logging
import pickle
import sys
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any, Literal

import httpx
import torch
import websocket
import zstandard
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from nnsight.modeling import huggingface
from nnsight.modeling.transformers import TransformersModel
from nnsight.ndif import register
from nnsight.schema.config import CONFIG
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from nnsight.tracing.backend import Backend
from nnsight.tracing.tracer import Tracer
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_hybrid import portable
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.models.local import check_attention, layers_of
from lm_eval_hybrid.portable import programs

_log = logging.getLogger(__name__)

_CONNECT_TIMEOUT = 10.0  # seconds
_PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)  # seconds between attempts; the last one repeats

_START_ERRORS = ("Error starting model", "Error provisioning model")
"""What a server answers when it could not start a model, and does not say why."""
_MAX_FAILED_STARTS = 5  # in a row

_ANSWER_TYPES = {
    ("collections", "OrderedDict"),
    ("nnsight.schema.response", "Status"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_tensor_v2"),
}


@dataclass(frozen=True)
class Server:
    """An NDIF server, and how long to wait for it.

    Attributes:
        host: `http://` or `https://`, name and port.
        key: from the server's operator; empty where the server needs none.
        timeout: seconds of silence about a request after which it counts as lost.
        patience: seconds during which a request is retried before it becomes an error.

    Raises:
        HybridError: `host` is no address, or a time is not above 0.
    """

    host: str
    key: str = ""
    timeout: float = 600.0
    patience: float = 900.0

    def __post_init__(self) -> None:
        if not self.host.startswith(("http://", "https://")):
            raise HybridError(
                f"NDIF host {self.host!r} does not begin with http:// or https://; correct ndif_host= or NDIF_HOST"
            )
        for name in ("timeout", "patience"):
            if not getattr(self, name) > 0:
                raise HybridError(f"ndif_{name}={getattr(self, name)} is not above 0; give a number of seconds")

    @classmethod
    def choose(cls, host: str | None, timeout: float | None = None, patience: float | None = None) -> "Server":
        """The server at `host`, else at NDIF_HOST, else in nnsight's configuration.

        The key comes from NDIF_API_KEY or that configuration, and is no argument: arguments are written into results.
        """
        times = {"timeout": timeout, "patience": patience}
        given = {name: float(value) for name, value in times.items() if value is not None}
        return cls((host or CONFIG.API.HOST).rstrip("/"), CONFIG.API.APIKEY or "", **given)


@dataclass
class Traffic:
    """Counts of what passed between this process and a server.

    Attributes:
        requests: that were answered; retries: that were sent again; sent, received: bytes; seconds: of waiting.
    """

    requests: int = 0
    retries: int = 0
    sent: int = 0
    received: int = 0
    seconds: float = 0.0

    @classmethod
    def total(cls, parts: Iterable["Traffic"]) -> "Traffic":
        """The sum over several processes."""
        parts = list(parts)
        return cls(**{field.name: sum(getattr(part, field.name) for part in parts) for field in fields(cls)})

    def pop(self) -> "Traffic":
        """The counts so far, which are set back to 0."""
        counts = replace(self)
        for field in fields(self):
            setattr(self, field.name, field.default)
        return counts


class RequestLost(Exception):
    """The fate of a request is unknown, or it may be retried; the text says why."""


class ModelNotStarted(RequestLost):
    """The server could not start the model: for the moment, or because something is wrong with it."""


def run_with_retries(
    server: Server, role: str, traffic: Traffic, attempt: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The answer to a request that `attempt` sends through a `Connection`.

    Args:
        role: of the model, `base` or `thinking`, for messages.

    Raises:
        HybridError: the server refuses the request, the program fails, or no answer comes within the server's patience.
        torch.OutOfMemoryError: the server's memory was too small for the request.
    """
    begun = time.monotonic()
    attempts = failed_starts = 0
    while True:
        attempts += 1
        try:
            answer = attempt()
        except RequestLost as lost:
            failed_starts = failed_starts + 1 if isinstance(lost, ModelNotStarted) else 0
            if failed_starts == _MAX_FAILED_STARTS:
                raise HybridError(
                    f"{server.host} failed to start the {role} model {failed_starts} times in a row: {lost}; check "
                    "that it serves this model; the reason is in the server's log"
                ) from lost
            pause = _PAUSES[min(attempts, len(_PAUSES)) - 1]
            if time.monotonic() - begun + pause > server.patience:
                raise HybridError(
                    f"the {role} model at {server.host} did not answer within {server.patience:g} s and {attempts} "
                    f"attempts: {lost}; check that the server is up, or raise ndif_patience="
                ) from lost
            _log.warning("The %s model at %s: %s; retrying in %g s", role, server.host, lost, pause)
            traffic.retries += 1
            time.sleep(pause)
        except RemoteError as error:
            raise _refusal(error, role, server) from error
        else:
            traffic.requests += 1
            traffic.seconds += time.monotonic() - begun
            return answer


class Connection(RemoteBackend):
    """One attempt at a request: nnsight's connection to a server, with timeouts, and with `load_answer`."""

    def __init__(self, server: Server, key: str, env: dict[str, Any], traffic: Traffic) -> None:
        super().__init__(key, host=server.host, api_key=server.key, env=env)
        self.display.enabled = False
        self._timeout, self._traffic = server.timeout, traffic

    def request(self, request: RequestModel, tracer: Tracer) -> dict[str, Any] | None:
        blob = RequestModel.serialize(tracer, self.compress)
        self._traffic.sent += len(blob)
        try:
            return self._answer(request, blob)
        # pydantic and json raise ValueErrors for a malformed message.
        except (OSError, websocket.WebSocketException, httpx.HTTPError, ValueError, zstandard.ZstdError) as error:
            if _status(error) in range(400, 500):
                raise RemoteError(str(error)) from error
            raise RequestLost(_summary(error)) from error
        except RemoteError as error:
            if not _may_pass(error):
                raise
            text = _summary(error)
            starting = any(words in text for words in _START_ERRORS)
            raise (ModelNotStarted if starting else RequestLost)(text) from error
        except pickle.UnpicklingError as error:
            raise HybridError(f"{self.host} sent other data than tensors: {error}; use a server you trust") from error

    def _answer(self, request: RequestModel, blob: bytes) -> dict[str, Any] | None:
        connection = websocket.create_connection(
            f"{self.ws_host}/subscribe",
            timeout=_CONNECT_TIMEOUT,
            header={"ndif-api-key": self.api_key} if self.api_key else None,
        )
        try:
            request.session_id = json.loads(connection.recv())["session_id"]
            self.send(request, blob)
            connection.settimeout(self._timeout)
            while True:
                response = self.parse(connection.recv())
                result = self.handle(response)
                if response.status == Status.COMPLETED:
                    return result
        finally:
            connection.close()

    @staticmethod
    def parse(message: str | bytes) -> ResponseModel:
        if isinstance(message, bytes):
            return ResponseModel(**load_answer(message))
        return ResponseModel.model_validate_json(message)

    def finalize(self, content: bytes) -> dict[str, Any]:
        self._traffic.received += len(content)
        if self.compress:
            content = zstandard.ZstdDecompressor().decompress(content)
        return load_answer(content)


def load_answer(content: bytes) -> Any:
    """What `torch.save` wrote, on the CPU.

    Raises:
        pickle.UnpicklingError: it holds more than tensors, numbers, strings, bytes, lists, tuples and dicts.
        ValueError: it is incomplete.
    """
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError(f"an answer of {len(content)} bytes is incomplete, or not written by torch.save")
    reader = SimpleNamespace(__name__=__name__, Unpickler=_Unpickler, UnpicklingError=pickle.UnpicklingError)
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False, pickle_module=reader)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ANSWER_TYPES:
            raise pickle.UnpicklingError(f"found {module}.{name}")
        return super().find_class(module, name)


def _summary(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _may_pass(error: RemoteError) -> bool:
    """Whether a retry may succeed after this error from the server."""
    if error.__cause__ is not None:
        return _status(error.__cause__) not in range(400, 500)
    # A failing program and a model that cannot be loaded come with a stack trace; what the server itself says of a
    # model that died, moved or is busy does not.
    return "Traceback" not in str(error) and "Could not deploy" not in str(error)


def _status(error: BaseException | None) -> int | None:
    """The HTTP status with which a request or a subscription failed."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code
    return getattr(error, "status_code", None)


def _refusal(error: RemoteError, role: str, server: Server) -> Exception:
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    if "out of memory" in text.lower():
        return torch.OutOfMemoryError(f"CUDA out of memory. At {server.host}: {lines[-1]}")
    advice = "check that it serves this model, with releases of nnsight and transformers like yours"
    if _status(error.__cause__) in (401, 403) or "API key" in text:
        advice = "set NDIF_API_KEY to a key of this server"
    elif "version" in text.lower():
        advice = "install the release that it asks for"
    reason = lines[0] if "Could not deploy" in text else lines[-1]
    return HybridError(f"{server.host} cannot run the {role} model: {reason}; {advice}")


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
        """See `programs.fit`."""
        return self._run(programs.fit, given)

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
