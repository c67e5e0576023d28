"""Who grades a taxonomy: a model behind an OpenAI-compatible endpoint, or one that the harness runs itself."""

import re
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import pydantic
from pydantic import Field
from tqdm import tqdm

from lm_eval_hybrid.behaviors.manifest import Count, Words
from lm_eval_hybrid.errors import HybridError

if TYPE_CHECKING:
    from lm_eval.api.model import LM

SLICE = 64  # prompts that a model of the harness is given at once: what an interruption loses

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class JudgeRecipe:
    """Which model grades, and how much of the taxonomy.

    Attributes:
        kind: `endpoint` asks a server for chat completions; `harness` runs a model of lm-evaluation-harness.
        model: its name at the endpoint, or the harness's model type, such as hf or vllm.
        url: of the endpoint, without /chat/completions: https://host/v1. None for `harness`.
        arguments: the harness's model_args, such as pretrained=FOLDER. Empty for `endpoint`.
        key_variable: environment variable that holds the endpoint's key; none is sent where it is not set. The key is
            written nowhere.
        max_tokens: of each reply, the judge's own thoughts included.
        timeout: seconds until a request counts as failed.
        retries: how often a request is tried again where the endpoint is overloaded, failing or silent.
        concurrency: requests at once; the batch size of a model of the harness.
        price_in, price_out: per million tokens, for the estimate of the cost.
        sentences: held-out sentences of each category that are graded, at most.
        examples: sentences of each category that the judge names it after, at most.
    """

    kind: Literal["endpoint", "harness"]
    model: Words
    url: str | None = None
    arguments: str = ""
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = "OPENAI_API_KEY"
    max_tokens: Count = 1024
    timeout: Annotated[float, Field(gt=0, le=86400)] = 120.0
    retries: Annotated[int, Field(ge=0, le=100)] = 5
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    price_in: Price | None = None
    price_out: Price | None = None
    sentences: Count = 50
    examples: Annotated[int, Field(ge=1, le=1000)] = 20

    @pydantic.model_validator(mode="after")
    def _check(self) -> "JudgeRecipe":
        if self.kind == "endpoint":
            _check_url(self.url)
            if self.arguments:
                raise ValueError(f"arguments are for kind 'harness' alone; found {self.arguments!r}")
        elif self.url is not None:
            raise ValueError("url is for kind 'endpoint' alone; give a harness model its base_url in arguments")
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("price_in and price_out must be given together; found one of them")
        return self


class Judge(ABC):
    """A model that is asked for words; `identity` says which, and everything else that decides its replies."""

    identity: str

    @abstractmethod
    def replies(self, prompts: Sequence[str]) -> Generator[tuple[int, str], None, None]:
        """The reply to each prompt with the prompt's position, in the order in which they come.

        Raises:
            HybridError: where the judge cannot be asked; what came before has been yielded.
        """

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """The reply to each prompt, in the prompts' order. Raises as `replies` does."""
        found = dict(self.replies(prompts))
        return [found[position] for position in range(len(prompts))]


class HarnessJudge(Judge):
    """A model of lm-evaluation-harness, by the type and the arguments that `lm_eval` takes, decoding greedily.

    A prompt is a user's turn of the model's chat template, where it has one.
    """

    def __init__(self, recipe: JudgeRecipe) -> None:
        self.identity = f"{recipe.model} ({recipe.arguments}), up to {recipe.max_tokens} tokens"
        self._lm = _loaded(recipe)
        self._settings = {"until": [], "max_gen_toks": recipe.max_tokens, "do_sample": False, "temperature": 0.0}

    def replies(self, prompts: Sequence[str]) -> Generator[tuple[int, str], None, None]:
        from lm_eval.api.instance import Instance

        for first in tqdm(range(0, len(prompts), SLICE), desc="judge", disable=len(prompts) <= SLICE):
            contexts = [self._context(prompt) for prompt in prompts[first : first + SLICE]]
            requests = [
                Instance("generate_until", {}, (context, dict(self._settings)), position)
                for position, context in enumerate(contexts)
            ]
            try:
                texts = self._lm.generate_until(requests)
            except OSError as error:  # a model of the harness may be a server, too
                raise HybridError(f"the judge {self.identity} must answer; found {error}; check it") from error
            yield from enumerate(texts, first)

    def _context(self, prompt: str) -> Any:
        tokenizer = getattr(self._lm, "tokenizer", None)
        if tokenizer is not None and not getattr(tokenizer, "chat_template", None):
            return prompt
        chat = [{"role": "user", "content": prompt}]
        try:
            return self._lm.apply_chat_template(chat, add_generation_prompt=True)
        except NotImplementedError:
            return prompt


def load(recipe: JudgeRecipe) -> Judge:
    """The judge of a recipe.

    Raises:
        HybridError: where the harness cannot load the model, or the endpoint's key is none.
    """
    from lm_eval_hybrid.discovery.endpoint import EndpointJudge

    return EndpointJudge(recipe) if recipe.kind == "endpoint" else HarnessJudge(recipe)


def _check_url(url: str | None) -> None:
    wanted = "url must be http(s)://host[:port]/path in ASCII, without a user, query or fragment"
    plain = url is not None and re.fullmatch(r"[!-~]+", url) is not None
    try:
        parts = urlsplit(url or "")
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        raise ValueError(f"{wanted}; found another form") from None
    # What is wrong is not repeated: it may be a password.
    if not plain or not sound or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"{wanted}; found {'none' if url is None else 'another form'}")


def _loaded(recipe: JudgeRecipe) -> "LM":
    import lm_eval.models  # noqa: F401  (makes the models known)
    from lm_eval.api.registry import get_model

    usual = {} if "batch_size=" in recipe.arguments else {"batch_size": recipe.concurrency}
    try:
        return get_model(recipe.model).create_from_arg_string(recipe.arguments, usual)
    except MemoryError:
        raise
    # Model arguments go to many libraries, which fail in as many ways.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HybridError(
            f"judge.model and judge.arguments must be what lm_eval takes as --model and --model_args; found "
            f"{recipe.model} with {recipe.arguments or 'no arguments'}: {reason}; mend them"
        ) from error
