"""Asking an NDIF server to run a program, again where the first asking was lost.

A request changes nothing at the server, so it can be sent again whenever it is unknown what became of it: a server that
is down or starts anew, a model that is moved, a connection that breaks, an answer that does not come. What the server
refuses, or the program itself cannot do, is said at once.
"""

import json
import logging
import pickle
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import httpx
import torch
import websocket
import zstandard
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from nnsight.schema.config import CONFIG
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from nnsight.tracing.tracer import Tracer

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.models.ndif.unpickling import load

_log = logging.getLogger(__name__)

_CONNECTING = 10.0
"""Seconds that a connection may take."""

_WAITS = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between one asking and the next; the last again and again."""


@dataclass(frozen=True)
class Server:
    """Where the models are, and how patiently they are asked.

    Attributes:
        host: `http://` or `https://`, name and port.
        key: as the server's operator gave it; empty for one that asks for none.
        timeout: seconds without a word of a request's state after which it counts as lost.
        patience: seconds for which a request is sent again and again; then it is an error.

    Raises:
        HybridError: for an address that is none, or a time that is not above 0.
    """

    host: str
    key: str = ""
    timeout: float = 600.0
    patience: float = 900.0

    def __post_init__(self) -> None:
        if not self.host.startswith(("http://", "https://")):
            raise HybridError(
                f"the NDIF host must begin with http:// or https://; found {self.host!r}; mend ndif_host= or NDIF_HOST"
            )
        for name in ("timeout", "patience"):
            if not getattr(self, name) > 0:
                raise HybridError(f"ndif_{name} must be seconds above 0; found {getattr(self, name)}; give some")

    @classmethod
    def choose(cls, host: str | None, timeout: float | None = None, patience: float | None = None) -> "Server":
        """The one at `host`, else of NDIF_HOST, else of nnsight's configuration; the key is of NDIF_API_KEY or there.

        A key is no argument: arguments are written into results.
        """
        times = {"timeout": timeout, "patience": patience}
        given = {name: float(value) for name, value in times.items() if value is not None}
        return cls((host or CONFIG.API.HOST).rstrip("/"), CONFIG.API.APIKEY or "", **given)


_STARTING = ("Error starting model", "Error provisioning model")
"""What the server says where it could not start one, if it does not say why."""

_STARTS = 5
"""Times in a row that a server may fail to start the model."""


class Lost(Exception):
    """What became of a request is unknown, or it can be asked again; its text says why."""


class NotStarted(Lost):
    """The server could not start the model: for the moment, or because there is something wrong with it."""


@dataclass
class Traffic:
    """What was asked of a server so far.

    Attributes:
        requests: answered ones; again: those that were sent again; sent, received: bytes; seconds: of waiting.
    """

    requests: int = 0
    again: int = 0
    sent: int = 0
    received: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, parts: Iterable["Traffic"]) -> "Traffic":
        """Of several processes together."""
        parts = list(parts)
        return cls(**{field.name: sum(getattr(part, field.name) for part in parts) for field in fields(cls)})

    def taken(self) -> "Traffic":
        """So far; from here on it is counted anew."""
        so_far = replace(self)
        for field in fields(self):
            setattr(self, field.name, field.default)
        return so_far


def ask(server: Server, role: str, traffic: Traffic, attempt: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer to a request, which `attempt` sends over a `Wire`.

    Args:
        role: of the model, `base` or `thinking`, for messages.

    Raises:
        HybridError: what the server refuses, or the program cannot do; or no answer for as long as patience lasts.
        torch.OutOfMemoryError: the server's memory was too small for it.
    """
    begun = time.monotonic()
    not_started = 0
    for asked in range(1_000_000):
        try:
            answer = attempt()
        except Lost as lost:
            not_started = not_started + 1 if isinstance(lost, NotStarted) else 0
            if not_started == _STARTS:
                raise HybridError(
                    f"the {role} model must run at {server.host}; found: {lost} (said {_STARTS} times); see that it "
                    "serves this model; its operator finds the reason in its log"
                ) from lost
            spent = time.monotonic() - begun
            pause = _WAITS[min(asked, len(_WAITS) - 1)]
            if spent + pause > server.patience:
                raise HybridError(
                    f"the {role} model at {server.host} must answer within {server.patience:g} s; found {lost} after "
                    f"{asked + 1} askings; see whether the server is up, or give it more with ndif_patience="
                ) from lost
            _log.warning("The %s model at %s: %s; asking again in %g s", role, server.host, lost, pause)
            traffic.again += 1
            time.sleep(pause)
        except RemoteError as error:
            raise _refused(error, role, server) from error
        else:
            traffic.requests += 1
            traffic.seconds += time.monotonic() - begun
            return answer
    raise AssertionError("patience ends before")


class Wire(RemoteBackend):
    """One asking: nnsight's way to a server, with ends to its waiting, and nothing unpickled that is not data."""

    def __init__(self, server: Server, key: str, env: dict[str, Any], traffic: Traffic) -> None:
        super().__init__(key, host=server.host, api_key=server.key, env=env)
        self.display.enabled = False
        self._timeout, self._traffic = server.timeout, traffic

    def request(self, request: RequestModel, tracer: Tracer) -> dict[str, Any] | None:
        blob = RequestModel.serialize(tracer, self.compress)
        self._traffic.sent += len(blob)
        try:
            return self._answer(request, blob)
        # Pydantic's and JSON's complaints of a message are ValueErrors.
        except (OSError, websocket.WebSocketException, httpx.HTTPError, ValueError, zstandard.ZstdError) as error:
            if _status(error) in range(400, 500):
                raise RemoteError(str(error)) from error
            raise Lost(_sentence(error)) from error
        except RemoteError as error:
            if _passes(error):
                text = _sentence(error)
                raise (NotStarted if any(words in text for words in _STARTING) else Lost)(text) from error
            raise
        except pickle.UnpicklingError as error:
            raise HybridError(
                f"{self.host} must answer with tensors; found: {error}; use a server you trust"
            ) from error

    def _answer(self, request: RequestModel, blob: bytes) -> dict[str, Any] | None:
        connection = websocket.create_connection(
            f"{self.ws_host}/subscribe",
            timeout=_CONNECTING,
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
            return ResponseModel(**load(message))
        return ResponseModel.model_validate_json(message)

    def finalize(self, content: bytes) -> dict[str, Any]:
        self._traffic.received += len(content)
        if self.compress:
            content = zstandard.ZstdDecompressor().decompress(content)
        return load(content)


def _sentence(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _passes(error: RemoteError) -> bool:
    """Whether asking again may help against a server's complaint."""
    if error.__cause__ is not None:
        return _status(error.__cause__) not in range(400, 500)
    # A program's failure, and that of loading the model, come with a stack trace; what the server itself says of a
    # model that died, moved or is busy does not.
    return "Traceback" not in str(error) and "Could not deploy" not in str(error)


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that a request or a subscription failed with."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code
    return getattr(error, "status_code", None)


def _refused(error: RemoteError, role: str, server: Server) -> Exception:
    text = str(error)
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if "out of memory" in text.lower():
        return torch.OutOfMemoryError(f"CUDA out of memory. At {server.host}: {lines[-1].strip()}")
    said = lines[-1].strip() if lines and "Could not deploy" not in text else (lines or [""])[0]
    advice = "see that it serves this model, with a release of nnsight and transformers like yours"
    if _status(error.__cause__) in (401, 403) or "API key" in text:
        advice = "set NDIF_API_KEY to a key of this server"
    elif "version" in text.lower():
        advice = "install the release that it asks for"
    return HybridError(f"the {role} model must run at {server.host}; found: {said}; {advice}")
