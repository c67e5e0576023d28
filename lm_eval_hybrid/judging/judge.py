"""Who is asked: a model behind an OpenAI-compatible endpoint, or one that the harness runs itself."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.judging.recipe import JudgeRecipe

if TYPE_CHECKING:
    from lm_eval.api.model import LM

SLICE = 64  # prompts that a model of the harness is given at once: what an interruption loses


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
    from lm_eval_hybrid.judging.endpoint import EndpointJudge

    return EndpointJudge(recipe) if recipe.kind == "endpoint" else HarnessJudge(recipe)


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
