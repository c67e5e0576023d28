"""Generation settings of a harness request, parsed and checked before anything is generated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.sampling import Sampling

# Settings of transformers' generate() that are handled here or make no difference whatever their value.
_HANDLED = {"do_sample", "temperature", "top_k", "top_p", "seed", "use_cache"}
# Settings that make no difference with this value; any other value is refused.
_NEUTRAL_VALUES = {
    "diversity_penalty": 0,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "length_penalty": 1,
    "min_p": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "typical_p": 1,
}
# Settings that choose among likely tokens, so that greedy decoding is the same with any value.
_NEUTRAL_IF_GREEDY = {"epsilon_cutoff", "eta_cutoff", "min_p", "typical_p"}


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
            HybridError: a limit below 1, an unsupported setting that has an effect, or a value of the wrong type.
        """
        try:
            settings = dict(normalize_gen_kwargs(dict(generation_kwargs), default_tokens))
            stop = handle_stop_sequences(settings.pop("until"), eos=None)
            tokens = settings.pop("max_gen_toks")
            sampling = _sampling(settings, seed)
        except HybridError:  # a ValueError that already says what is wrong
            raise
        except (TypeError, ValueError) as error:
            raise HybridError(
                f"generation settings {dict(generation_kwargs)} hold a value of the wrong type: {error}; correct it in "
                "--gen_kwargs or the task"
            ) from error
        if wrong := [text for text in stop if not isinstance(text, str)]:
            raise HybridError(
                f"until holds {wrong[0]!r}, which is not a string; correct it in --gen_kwargs or the task"
            )
        unsupported = [
            f"{name}={value}"
            for name, value in sorted(settings.items())
            if name not in _HANDLED
            and not (sampling is None and name in _NEUTRAL_IF_GREEDY)
            and not (name in _NEUTRAL_VALUES and (value is None or value == _NEUTRAL_VALUES[name]))
        ]
        if unsupported:
            raise HybridError(
                f"model hybrid does not support {', '.join(unsupported)}; it takes until, max_gen_toks, do_sample, "
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


def check_continuation(request: Instance) -> None:
    """Check that a log-likelihood request has something to score.

    Raises:
        HybridError: the continuation is empty.
    """
    if not request.args[1]:
        raise HybridError(
            f"the continuation of {_name(request)} is empty; a log-likelihood needs at least one token; correct the "
            "task's doc_to_choice or doc_to_target"
        )


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
