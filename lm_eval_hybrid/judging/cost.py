"""What asking a judge takes, said before anything is asked."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from lm_eval_hybrid.judging.recipe import JudgeRecipe

TOKEN = 4  # bytes of a prompt to a token, about


@dataclass(frozen=True)
class Estimate:
    """What some questions take, at most.

    Attributes:
        requests: questions to the judge.
        tokens_in: about, of all prompts.
        tokens_out: of all replies, if each used all that it may.
        price: of these, in the currency of the recipe's prices; None where it has none.
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


def cost(prompts: Iterable[tuple[int, str]], recipe: JudgeRecipe) -> Estimate:
    """What it takes to ask each prompt as often as the number beside it says."""
    requests = tokens_in = 0
    for count, prompt in prompts:
        requests += count
        tokens_in += count * ceil(len(prompt.encode()) / TOKEN)
    tokens_out = requests * recipe.max_tokens
    price = None
    if recipe.price_in is not None and recipe.price_out is not None:
        price = (tokens_in * recipe.price_in + tokens_out * recipe.price_out) / 1e6
    return Estimate(requests, tokens_in, tokens_out, price)
