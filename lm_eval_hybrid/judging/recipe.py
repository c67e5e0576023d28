"""What says which model judges: fields of a discovery's recipe, or a YAML file of their own."""

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import pydantic
from pydantic import Field

from lm_eval_hybrid.bundles.manifest import Count, Words, first_problem
from lm_eval_hybrid.common import strict_yaml
from lm_eval_hybrid.common.errors import HybridError

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class JudgeRecipe:
    """Which model is asked, and how.

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


def read(path: Path) -> JudgeRecipe:
    """The recipe in a YAML file of its fields.

    Raises:
        HybridError: where it cannot be read, or is none.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise HybridError(
            f"{path}: a judge must be a readable YAML file; found {error.strerror}; name another"
        ) from None
    fields = strict_yaml.load(data, f"{path}: a judge", "mend it, such as kind: endpoint, url: ..., model: ...")
    try:
        # By name, so that a problem is said to be of judge.retries, as in a discovery's recipe.
        return pydantic.TypeAdapter(dict[str, JudgeRecipe]).validate_python({"judge": fields})["judge"]
    except pydantic.ValidationError as error:
        raise HybridError(f"{path}: {first_problem(error)}; mend it") from None


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
