"""Loading a judge: a model of the harness or an endpoint, asked through a cache that keeps its replies."""

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lm_eval_hybrid.common import jsonl
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.judging.recipe import JudgeRecipe

if TYPE_CHECKING:
    from lm_eval.api.model import LM


Record = Callable[[int, str], None]
"""Called with a prompt's position and its reply as soon as that comes."""


class Judge(Protocol):
    """A model that replies to prompts; `identity` names it and everything else that decides its replies."""

    identity: str

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """The reply to each prompt, in the prompts' order.

        Raises:
            HybridError: the judge cannot be asked.
        """


class HarnessJudge:
    """A model of lm-evaluation-harness, decoding greedily.

    A prompt is a user's turn of the model's chat template, if it has one.
    """

    def __init__(self, lm: "LM", identity: str, max_tokens: int) -> None:
        self.identity = identity
        self._lm = lm
        self._settings = {"until": [], "max_gen_toks": max_tokens, "do_sample": False, "temperature": 0.0}

    def ask(self, prompts: Sequence[str], record: Record = lambda position, reply: None) -> list[str]:
        """As `Judge.ask`; replies that came before an error have been recorded."""
        from lm_eval.api.instance import Instance

        if not prompts:
            return []
        contexts = [self._context(prompt) for prompt in prompts]
        received = _Received(contexts, record)
        self._lm.cache_hook = received
        requests = [
            Instance("generate_until", {}, (context, dict(self._settings)), position)
            for position, context in enumerate(contexts)
        ]
        try:
            replies = self._lm.generate_until(requests)
        except OSError as error:  # a model of the harness may be a server
            raise HybridError(f"judge {self.identity} failed: {error}; check it") from error
        for context, reply in zip(contexts, replies, strict=True):  # not every model calls the hook
            received.add_partial("generate_until", (context, self._settings), reply)
        return [received.replies[position] for position in range(len(prompts))]

    def _context(self, prompt: str) -> Any:
        tokenizer = getattr(self._lm, "tokenizer", None)
        if tokenizer is not None and not getattr(tokenizer, "chat_template", None):
            return prompt
        try:
            return self._lm.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
        except NotImplementedError:
            return prompt


class _Received:
    """A cache hook of the harness, which models call with each reply as it comes."""

    def __init__(self, contexts: Sequence[Any], record: Record) -> None:
        self.replies: dict[int, str] = {}
        self._record = record
        self._waiting: dict[Any, list[int]] = {}
        for position, context in reversed(list(enumerate(contexts))):
            self._waiting.setdefault(context, []).append(position)

    def add_partial(self, method: str, request: tuple[Any, ...], reply: str) -> None:
        if positions := self._waiting.get(request[0]):
            position = positions.pop()
            self.replies[position] = reply
            self._record(position, reply)


def load(recipe: JudgeRecipe) -> HarnessJudge:
    """Load a recipe's judge.

    Raises:
        HybridError: the harness cannot load the model, a package is missing, or the endpoint's key is malformed.
    """
    if recipe.kind == "harness":
        identity = f"{recipe.model} ({recipe.arguments}), up to {recipe.max_tokens} tokens"
        return HarnessJudge(_harness_model(recipe), identity, recipe.max_tokens)
    try:
        from lm_eval_hybrid.judging.endpoint import EndpointModel

        lm = EndpointModel(recipe)
    except ModuleNotFoundError as error:
        raise HybridError(
            f"{error}; a judge at an endpoint needs aiohttp, requests and tenacity; pip install 'lm-eval-hybrid[judge]'"
        ) from error
    identity = f"{recipe.model} at {recipe.url}, up to {recipe.max_tokens} tokens"
    return HarnessJudge(lm, identity, recipe.max_tokens)


def _harness_model(recipe: JudgeRecipe) -> "LM":
    import lm_eval.models  # noqa: F401  (registers the models)
    from lm_eval.api.registry import get_model

    batch = {} if "batch_size=" in recipe.arguments else {"batch_size": recipe.concurrency}
    try:
        return get_model(recipe.model).create_from_arg_string(recipe.arguments, batch)
    except MemoryError:
        raise
    # Model arguments go to many libraries, which fail in as many ways.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HybridError(
            f"the harness cannot load model {recipe.model} with {recipe.arguments or 'no arguments'}: {reason}; set "
            "judge.model and judge.arguments as lm_eval takes --model and --model_args"
        ) from error


REPLIES_FILE = "judge.jsonl"


class CachedJudge:
    """A judge whose replies are appended to a folder's judge.jsonl as they come.

    A line holds the reply and the sha256 of the judge's identity, the prompt and, except for a prompt's first reply,
    the reply's number. A last line that an interruption cut is removed.

    Raises:
        HybridError: the file holds anything else, or cannot be read or written.
    """

    def __init__(self, judge: HarnessJudge, folder: Path) -> None:
        self.identity = judge.identity
        self._judge = judge
        self._path = folder / REPLIES_FILE
        self._known = _read(self._path) if self._path.exists() else {}

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """The first reply to each prompt, in the prompts' order. Raises as `Judge.ask`."""
        return [replies[0] for replies in self.repeated(prompts, 1)]

    def repeated(self, prompts: Sequence[str], repeats: int) -> list[list[str]]:
        """`repeats` replies to each prompt, each from a request of its own. Raises as `Judge.ask`."""
        keys = [[self._key(prompt, number) for number in range(repeats)] for prompt in prompts]
        new = {
            key: prompt
            for prompt, of_prompt in zip(prompts, keys, strict=True)
            for key in of_prompt
            if key not in self._known
        }
        if new:
            self._ask(new)
        return [[self._known[key] for key in of_prompt] for of_prompt in keys]

    def _key(self, prompt: str, number: int) -> str:
        parts = [self.identity, prompt, *([number] if number else [])]
        return sha256(json.dumps(parts).encode()).hexdigest()

    def _ask(self, prompts: dict[str, str]) -> None:
        keys = list(prompts)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                jsonl.cut_torn(self._path)
            with self._path.open("ab") as file:

                def record(position: int, reply: str) -> None:
                    file.write(json.dumps({"key": keys[position], "reply": reply}).encode() + b"\n")
                    file.flush()
                    self._known[keys[position]] = reply

                self._judge.ask(list(prompts.values()), record)
        except OSError as error:
            raise HybridError(
                f"{self._path}: cannot keep replies ({error.strerror or error}); make room, or name another folder"
            ) from error


def _read(path: Path) -> dict[str, str]:
    known = {}
    for number, row in jsonl.rows(path, torn=True):
        if not (
            isinstance(row, dict) and row.keys() == {"key", "reply"} and all(isinstance(v, str) for v in row.values())
        ):
            raise HybridError(f"{path}:{number}: no reply of a judge: {row!r:.60}; delete the file")
        known[row["key"]] = row["reply"]
    return known
