"""Loads the model that judges: any model of lm-evaluation-harness, one of which asks an endpoint."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

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
