"""A chat model behind an OpenAI-compatible endpoint, asked through the harness's client.

The harness makes the payload and the session and keeps the requests concurrent; each request is sent here. The
harness's own would log the request's headers, with the key, follow redirects, try again after a refusal, and take a
body that is no chat completion for an empty reply.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from aiohttp import ClientConnectorError, ClientError, ClientSession
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, OpenAIChatCompletion
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from lm_eval_hybrid.common.errors import HybridError, one_line
from lm_eval_hybrid.judging.recipe import JudgeRecipe

WAIT = wait_exponential(max=60)  # seconds before another try: 1, 2, 4, ...
_RETRIED = (408, 409, 425, 429)
_MALFORMED = (ValueError, LookupError, TypeError, RecursionError)
_CHECK = "check judge.url, which usually ends in /v1, and judge.model"
log = logging.getLogger(__name__)
logging.getLogger("lm_eval.models.api_models").setLevel(logging.WARNING)  # or it tells its default settings


class _Temporary(HybridError):
    """A failure that another try may cure."""


class EndpointModel(OpenAIChatCompletion):
    """The harness's chat model at a recipe's endpoint.

    Raises:
        HybridError: the key holds characters that no header can.
    """

    def __init__(self, recipe: JudgeRecipe) -> None:
        self._variable = recipe.key_variable
        self._key = os.environ.get(self._variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable() and " " not in self._key):
            raise HybridError(f"{self._variable} holds characters that are not printable ASCII; set the key again")
        if self._key:
            log.info("the judge at %s is sent the key in %s", recipe.url, self._variable)
        super().__init__(
            base_url=f"{str(recipe.url).rstrip('/')}/chat/completions",
            model=recipe.model,
            # Without any header the harness would send the key in OPENAI_API_KEY.
            header={"User-Agent": "lm-eval-hybrid"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
            num_concurrent=recipe.concurrency,
        )
        self.timeout = recipe.timeout  # the harness's argument is in whole seconds
        self._tries = recipe.retries + 1
        self._error: Exception | None = None
        address = urlsplit(self.base_url)
        self._proxy = None if proxy_bypass(str(address.hostname)) else getproxies().get(address.scheme)
        # OpenAI's own models take other parameters, and the harness knows which.
        self._dialect = OpenAIChatCompletion if address.hostname == "api.openai.com" else LocalChatCompletion

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The replies in the order of `requests`, several of which are sent at once.

        Raises:
            HybridError: a request was refused, or each of its tries failed. No other was sent after it.
        """
        contexts, settings = zip(*(request.args for request in requests), strict=True)
        keys = [request.args for request in requests]
        self._error = None
        replies = asyncio.run(self.get_batched_requests(list(contexts), keys, gen_kwargs=settings[0]))
        if self._error is not None:
            raise self._error
        return list(itertools.chain.from_iterable(replies))

    async def amodel_call(
        self,
        session: ClientSession,
        sem: asyncio.Semaphore,
        messages: list[Any],
        *,
        gen_kwargs: dict[str, Any],
        cache_keys: list[Any],
        **_: Any,
    ) -> list[str]:
        """The reply to one request, or none after an error, which `generate_until` raises at the end."""
        payload = self._dialect._create_payload(self, self.create_message(messages), gen_kwargs=dict(gen_kwargs))
        plain = {name: value for name, value in payload.items() if name not in ("stop", "seed")}  # some servers refuse
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._tries), wait=WAIT, retry=retry_if_exception_type(_Temporary), reraise=True
        )
        async with sem:
            if self._error is not None:
                return []
            try:
                reply: str = await retrying(self._reply, session, plain)
                self.cache_hook.add_partial("generate_until", cache_keys[0], reply)
                return [reply]
            except Exception as error:
                self._error = self._error or error
                return []

    async def _reply(self, session: ClientSession, payload: dict[str, Any]) -> str:
        try:
            async with session.post(
                self.base_url, json=payload, headers=self.header, proxy=self._proxy, allow_redirects=False
            ) as response:
                status, body = response.status, (await response.read()).decode(errors="replace")
        except ClientConnectorError as error:
            raise self._failure(self._shown(error), "start it, or fix judge.url") from error
        except asyncio.TimeoutError as error:
            raise self._failure(f"no whole answer within {self.timeout:g} seconds") from error
        except (ClientError, OSError) as error:
            raise self._failure(f"a broken connection ({self._shown(error)})") from error
        if status == 200:
            return self._content(body)
        with contextlib.suppress(*_MALFORMED):
            body = json.loads(body)["error"]["message"]
        found = f"status {status} ({self._shown(body)})"
        if status in _RETRIED or status >= 500:
            raise self._failure(found)
        if status in (401, 403):
            key = "the key in it is refused" if self._key else "it is not set"
            raise self._failure(found, f"set {self._variable}: {key}")
        raise self._failure(found, _CHECK)

    def _content(self, body: str) -> str:
        with contextlib.suppress(*_MALFORMED):
            content = json.loads(body)["choices"][0]["message"]["content"]
            if isinstance(content, str | None):
                return content or ""  # None: all of max_tokens went into thoughts, or it refuses
        raise self._failure(f"no chat completion but {self._shown(body[:100])}", _CHECK)

    def _failure(self, found: str, advice: str | None = None) -> HybridError:
        """A failure for good, or, without advice, one that may pass."""
        if advice is not None:
            return HybridError(f"judge at {self.base_url}: {found}; {advice}")
        return _Temporary(
            f"judge at {self.base_url}: {found}, after {self._tries} tries; try again later: replies that came are kept"
        )

    def _shown(self, words: object) -> str:
        """A server's words as part of one line, without our key, which it may repeat."""
        text = one_line(str(words).replace(self._key, "***") if self._key else str(words))
        return f"{text[:300]}..." if len(text) > 300 else text or "nothing"
