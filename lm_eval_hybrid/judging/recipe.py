"""Which model judges, and what asking it costs: fields of a discovery recipe, or a YAML file of their own."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import pydantic
from pydantic import Field

from lm_eval_hybrid.bundles.manifest import Count, Words, first_problem
from lm_eval_hybrid.common import strict_yaml
from lm_eval_hybrid.common.errors import HybridError

TOKEN_BYTES = 4  # of a prompt, about
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class JudgeRecipe:
    """Which model is asked, and how.

    Attributes:
        kind: `endpoint` asks a server for chat completions; `harness` runs a model of lm-evaluation-harness.
        model: its name at the endpoint, or the harness's model type, such as hf or vllm.
        url: of the endpoint, without /chat/completions: https://host/v1. None for `harness`.
        arguments: the harness's model_args, such as pretrained=FOLDER. Empty for `endpoint`.
        key_variable: environment variable that holds the endpoint's key; without it no key is sent. The key is never
            written anywhere.
        max_tokens: of each reply, including the judge's own thoughts.
        timeout: seconds until a request counts as failed.
        retries: of a request, if the endpoint is overloaded, failing or silent.
        concurrency: requests at once; the batch size of a model of the harness.
        price_in, price_out: per million tokens, for the estimate of the cost.
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


@dataclass(frozen=True)
class JudgeCost:
    """An upper bound on what asking a judge costs.

    Attributes:
        tokens_in: of all prompts, about.
        tokens_out: of all replies, if each used max_tokens.
        price: in the currency of the recipe's prices; None without them.
    """

    requests: int
    tokens_in: int
    tokens_out: int
    price: float | None

    def __str__(self) -> str:
        price = "no prices given" if self.price is None else f"at most {self.price:,.2f} by the prices given"
        return (
            f"at most {self.requests:,} requests, about {self.tokens_in:,} tokens in and at most "
            f"{self.tokens_out:,} out; {price}"
        )


def cost(prompts: Iterable[tuple[int, str]], recipe: JudgeRecipe) -> JudgeCost:
    """What sending prompts costs at most.

    Args:
        prompts: each as (times it is sent, prompt).
    """
    requests = tokens_in = 0
    for count, prompt in prompts:
        requests += count
        tokens_in += count * ceil(len(prompt.encode()) / TOKEN_BYTES)
    tokens_out = requests * recipe.max_tokens
    price = None
    if recipe.price_in is not None and recipe.price_out is not None:
        price = (tokens_in * recipe.price_in + tokens_out * recipe.price_out) / 1e6
    return JudgeCost(requests, tokens_in, tokens_out, price)


def read(path: Path) -> JudgeRecipe:
    """Read a YAML file of a recipe's fields.

    Raises:
        HybridError: it cannot be read, or is no recipe.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise HybridError(f"{path}: cannot be read ({error.strerror}); name a judge's YAML file") from None
    fields = strict_yaml.load(data, f"{path}: a judge", "fix it, such as kind: endpoint, url: ..., model: ...")
    try:
        # Under the name that a discovery recipe has, so that errors name the field alike: judge.retries.
        return pydantic.TypeAdapter(dict[str, JudgeRecipe]).validate_python({"judge": fields})["judge"]
    except pydantic.ValidationError as error:
        raise HybridError(f"{path}: {first_problem(error)}; fix it") from None


def _check_url(url: str | None) -> None:
    form = "url must be http(s)://host[:port]/path in ASCII, without a user, query or fragment"
    plain = url is not None and re.fullmatch(r"[!-~]+", url) is not None
    try:
        parts = urlsplit(url or "")
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        raise ValueError(f"{form}; found another form") from None
    # The url is not repeated: it may hold a password.
    if not plain or not sound or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"{form}; found {'none' if url is None else 'another form'}")
