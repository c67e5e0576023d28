"""A judge behind an OpenAI-compatible endpoint: plain chat completions over the standard library.

A request is tried again where that may help: status 408, 409, 425, 429 or 5xx, silence, a connection that breaks. No
redirect is followed, for it would take the key along.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from http.client import HTTPException, HTTPResponse, IncompleteRead
from typing import Any
from urllib import request
from urllib.error import URLError

from tqdm import tqdm

from lm_eval_hybrid import __version__
from lm_eval_hybrid.bundles.store.download import brief
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.judging.judge import Judge
from lm_eval_hybrid.judging.recipe import JudgeRecipe

BACKOFF = 1.0  # seconds before the first retry; doubled for each that follows
LONGEST = 60.0  # seconds between two tries, whatever the server asks for
MAX_BYTES = 4 << 20  # of a reply
_CHUNK = 1 << 16
_AGAIN = (408, 409, 425, 429)
# What some models refuse to be told, and what they are told instead.
_OTHERWISE = {"max_tokens": "max_completion_tokens", "temperature": None}
log = logging.getLogger(__name__)


class _Later(Exception):
    """A failure that may pass; `seconds` is how long the server asked us to wait."""

    def __init__(self, found: str, seconds: float = 0.0) -> None:
        super().__init__(found)
        self.seconds = seconds


class EndpointJudge(Judge):
    """A model at an endpoint, asked at temperature 0, several requests at once."""

    def __init__(self, recipe: JudgeRecipe) -> None:
        self.identity = f"{recipe.model} at {recipe.url}, up to {recipe.max_tokens} tokens"
        self._recipe = recipe
        self._address = f"{str(recipe.url).rstrip('/')}/chat/completions"
        self._key = _key(recipe.key_variable)
        self._settings: dict[str, Any] = {"max_tokens": recipe.max_tokens, "temperature": 0}
        if self._key:
            log.info("the judge at %s is sent the key in %s", recipe.url, recipe.key_variable)
        self._opener = request.OpenerDirector()
        for handler in (
            request.ProxyHandler(),
            request.HTTPHandler(),
            request.HTTPSHandler(context=ssl.create_default_context()),
        ):
            self._opener.add_handler(handler)

    def replies(self, prompts: Sequence[str]) -> Generator[tuple[int, str], None, None]:
        failure: BaseException | None = None
        stopped = threading.Event()
        with ThreadPoolExecutor(self._recipe.concurrency) as pool:
            asked = {pool.submit(self._reply, prompt, stopped): i for i, prompt in enumerate(prompts)}
            try:
                for future in tqdm(as_completed(asked), total=len(asked), desc="judge", disable=len(asked) < 2):
                    if future.cancelled():
                        continue
                    if failure is None and (failure := future.exception()) is not None:
                        # Nothing new is asked; what is under way is still waited for, and yielded.
                        stopped.set()
                        for other in asked:
                            other.cancel()
                    if future.exception() is None:
                        yield asked[future], future.result()
            finally:
                stopped.set()
                for other in asked:
                    other.cancel()
        if failure is not None:
            raise failure

    def _reply(self, prompt: str, stopped: threading.Event) -> str:
        tries = self._recipe.retries + 1
        for attempt in range(tries):
            try:
                return self._once(prompt)
            except _Later as failure:
                found = failure
            wait = max(found.seconds, BACKOFF * 2**attempt)
            if attempt + 1 == tries or stopped.wait(min(wait, LONGEST)):
                break
        raise self._failure("answer", f"{found}, after {attempt + 1} tries", "try again later: what came is kept")

    def _once(self, prompt: str) -> str:
        """The reply to one request, without what the endpoint says it must not be told.

        Raises:
            _Later: where it is worth another try.
            HybridError: where it is not.
        """
        settings = self._settings
        status, data, wait = self._send(settings | _message(self._recipe.model, prompt))
        if status == 200:
            return self._completion(data)
        parameter, said = _error(data)
        if status == 400 and parameter in _OTHERWISE and parameter in settings:
            self._settings = _without(settings, parameter)  # from now on, for all requests
            log.warning("the judge takes no %s like ours: %s", parameter, brief(said))
            return self._once(prompt)
        found = f"status {status}" + (f" ({self._hidden(said)})" if said else "")
        if status in _AGAIN or status >= 500:
            raise _Later(found, wait)
        if status in (401, 403):
            held = "the key in it is refused" if self._key else "it is not set"
            raise self._failure("accept the key", found, f"set {self._recipe.key_variable}: {held}")
        raise self._failure("answer", found, "check judge.url, which usually ends in /v1, and judge.model")

    def _send(self, content: dict[str, Any]) -> tuple[int, bytes, float]:
        """Status and body of the answer to a request, and how many seconds it asks us to wait."""
        headers = {"Content-Type": "application/json", "User-Agent": f"lm-eval-hybrid/{__version__}"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        message = request.Request(self._address, json.dumps(content).encode(), headers, method="POST")
        deadline = time.monotonic() + self._recipe.timeout
        try:
            with self._opener.open(message, timeout=self._recipe.timeout) as response:
                return response.status, self._body(response, deadline), _seconds(response.headers.get("Retry-After"))
        except URLError as error:  # before there was an answer
            reason = error.reason
            if isinstance(reason, (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)):
                raise self._failure("be reachable", brief(reason), "start it, or mend judge.url") from error
            raise _Later(brief(reason)) from error
        except TimeoutError as error:
            raise _Later(f"no whole answer within {self._recipe.timeout:g} seconds") from error
        except (HTTPException, OSError) as error:
            raise _Later(f"a broken connection ({brief(error)})") from error

    def _body(self, response: HTTPResponse, deadline: float) -> bytes:
        data = bytearray()
        while chunk := response.read1(_CHUNK):
            data += chunk
            if len(data) > MAX_BYTES:
                raise self._failure("answer in at most 4 MiB", "more", "check judge.url and judge.max_tokens")
            if time.monotonic() > deadline:
                raise TimeoutError
        if response.length:
            raise IncompleteRead(b"", response.length)
        return bytes(data)

    def _completion(self, data: bytes) -> str:
        try:
            content = json.loads(data)["choices"][0]["message"]["content"]
            if content is None:  # all of max_tokens went into thoughts, or it refuses
                return ""
            if not isinstance(content, str):
                raise TypeError
        except (ValueError, LookupError, TypeError, RecursionError):
            found = self._hidden(data[:100].decode(errors="replace")) or "an empty body"
            raise self._failure(
                "answer with a chat completion", found, "check judge.url, which usually ends in /v1"
            ) from None
        return content

    def _hidden(self, text: str) -> str:
        """What the endpoint says, on one line, without our key, which it may repeat."""
        hidden = text.replace(self._key, "***") if self._key else text
        return brief(hidden) if hidden.strip() else ""

    def _failure(self, must: str, found: str, cure: str) -> HybridError:
        return HybridError(f"the judge at {self._address} must {must}; found {found}; {cure}")


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise HybridError(f"{variable} must hold a key in printable ASCII; found other characters; set it anew")
    return key


def _message(model: str, prompt: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}]}


def _without(settings: dict[str, Any], parameter: str) -> dict[str, Any]:
    others = {name: value for name, value in settings.items() if name != parameter}
    instead = _OTHERWISE[parameter]
    return others if instead is None else others | {instead: settings[parameter]}


def _error(data: bytes) -> tuple[str | None, str]:
    """The parameter that an endpoint's error is about, if any, and what it says."""
    try:
        error = json.loads(data)["error"]
        parameter, said = error.get("param"), error.get("message")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None, data[:300].decode(errors="replace")
    return parameter if isinstance(parameter, str) else None, said if isinstance(said, str) else ""


def _seconds(header: str | None) -> float:
    """Of a Retry-After that counts seconds; a date is not waited for."""
    return float(header) if header and header.isascii() and header.isdigit() else 0.0
