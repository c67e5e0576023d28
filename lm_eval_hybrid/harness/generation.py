"""Generation settings of a harness request, parsed and checked before anything is generated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.sampling import Sampling

# Settings of transformers' generate() that make no difference here.
_NEUTRAL = {"do_sample", "num_beams", "use_cache"}
_SAMPLING = {"temperature", "top_k", "top_p", "seed"}
_NEUTRAL_IF_GREEDY = {"min_p"}


@dataclass(frozen=True)
class GenerationSettings:
    """When an answer ends, and how its tokens are chosen.

    Attributes:
        max_new_tokens: the most tokens an answer may have.
        stop: strings that end an answer.
        sampling: how tokens are drawn; None for greedy decoding.
    """

    max_new_tokens: int
    stop: tuple[str, ...]
    sampling: Sampling | None = None

    @classmethod
    def of(cls, generation_kwargs: Mapping[str, Any], default_tokens: int, seed: int = 0) -> "GenerationSettings":
        """Parse a task's `generation_kwargs`.

        Args:
            default_tokens: the limit of an answer's length where the task sets none.
            seed: of the sampling, where `generation_kwargs` has none.

        Raises:
            HybridError: beam search, a limit below 1, an unknown setting, or a value of the wrong type.
        """
        try:
            settings = dict(normalize_gen_kwargs(dict(generation_kwargs), default_tokens))
            stop = handle_stop_sequences(settings.pop("until"), eos=None)
            tokens = settings.pop("max_gen_toks")
            sampling = _sampling(settings, seed)
        except (TypeError, ValueError) as error:
            raise HybridError(
                f"generation settings {dict(generation_kwargs)} hold a value of the wrong type: {error}; correct it in "
                "--gen_kwargs or the task"
            ) from error
        if settings.get("num_beams", 1) != 1:
            raise HybridError(
                f"num_beams={settings['num_beams']} asks for beam search, which model hybrid lacks; leave num_beams out"
            )
        if wrong := [text for text in stop if not isinstance(text, str)]:
            raise HybridError(
                f"until holds {wrong[0]!r}, which is not a string; correct it in --gen_kwargs or the task"
            )
        known = _NEUTRAL | _SAMPLING | (set() if sampling else _NEUTRAL_IF_GREEDY)
        if unknown := sorted(settings.keys() - known):
            raise HybridError(
                f"model hybrid does not support {', '.join(unknown)}; it takes until, max_gen_toks, do_sample, "
                "temperature, top_k, top_p and seed; leave the others out of generation_kwargs and --gen_kwargs"
            )
        if tokens < 1:
            raise HybridError(f"max_gen_toks={tokens} is below 1; pass for example --gen_kwargs max_gen_toks=256")
        return cls(tokens, tuple(text for text in stop if text), sampling)


def _sampling(settings: Mapping[str, Any], seed: int) -> Sampling | None:
    if not settings.get("do_sample"):
        return None
    temperature = float(settings.get("temperature") or 1.0)  # the harness sets 0 where the task has none
    given = settings.get("seed")
    return Sampling(
        temperature,
        int(settings.get("top_k") or 0),
        float(settings.get("top_p") or 1.0),
        seed if given is None else int(given),
    )


def check_not_empty(request: Instance) -> None:
    """Check that a request has a prompt.

    Raises:
        HybridError: the prompt is empty. (A tokenizer may add a token of its own, but that is no question.)
    """
    if not request.args[0]:
        raise HybridError(f"the prompt of {_name(request)} is empty; correct the task's doc_to_text")


def check_fits_context(
    request: Instance, role: str, tokens: int, settings: GenerationSettings, context_length: int
) -> None:
    """Check that a prompt of `tokens` tokens and its answer fit model `role`'s context of `context_length` tokens.

    Raises:
        HybridError: they do not fit.
    """
    room = context_length - tokens
    if room < settings.max_new_tokens:
        fewer = f"pass --gen_kwargs max_gen_toks={room} or less, or " if room > 0 else ""
        raise HybridError(
            f"the prompt of {_name(request)} has {tokens} tokens, and max_gen_toks={settings.max_new_tokens}; together "
            f"they must fit the {role} model's context of {context_length} tokens; {fewer}shorten the prompt (fewer "
            "shots)"
        )


def _name(request: Instance) -> str:
    return f"document {request.doc_id} of {request.task_name}"
