"""A harness request, read and checked before anything is generated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.sampling import Sampling

# Settings of generate() that greedy decoding, or any decoding of ours, is the same without.
_GREEDY = {"do_sample", "num_beams", "use_cache"}
_SAMPLED = {"temperature", "top_k", "top_p", "seed"}
_WITHOUT_EFFECT = {"min_p"}  # on greedy decoding


@dataclass(frozen=True)
class Settings:
    """How an answer is made: it ends at the latest after `max_new_tokens` tokens, or before one of the strings `stop`.

    Attributes:
        sampling: how tokens are drawn; None: greedily.
    """

    max_new_tokens: int
    stop: tuple[str, ...]
    sampling: Sampling | None = None

    @classmethod
    def of(cls, generation_kwargs: Mapping[str, Any], default_tokens: int, seed: int = 0) -> "Settings":
        """Read a task's `generation_kwargs`; `seed` is of the draws, where they name none.

        Raises:
            HybridError: they ask for beams, no tokens, or anything else that is not known here; or a value is not of
                its kind.
        """
        try:
            settings = dict(normalize_gen_kwargs(dict(generation_kwargs), default_tokens))
            stop = handle_stop_sequences(settings.pop("until"), eos=None)
            tokens = settings.pop("max_gen_toks")
            sampling = _sampling(settings, seed)
        except (TypeError, ValueError) as error:
            raise HybridError(
                f"generation settings must be of their kind; found {dict(generation_kwargs)}: {error}; mend them"
            ) from error
        if settings.get("num_beams", 1) != 1:
            raise HybridError(f"model hybrid knows no beams; found {dict(generation_kwargs)}; leave num_beams out")
        if wrong := [text for text in stop if not isinstance(text, str)]:
            raise HybridError(f"until must be strings; found {wrong[0]!r}; mend --gen_kwargs or the task")
        known = _GREEDY | _SAMPLED | (set() if sampling else _WITHOUT_EFFECT)
        if unknown := sorted(settings.keys() - known):
            raise HybridError(
                "model hybrid takes until, max_gen_toks, do_sample, temperature, top_k, top_p and seed; found "
                f"{', '.join(unknown)}; leave it out of the task's generation_kwargs and of --gen_kwargs"
            )
        if tokens < 1:
            raise HybridError(f"max_gen_toks must be 1 or more; found {tokens}; pass --gen_kwargs max_gen_toks=256")
        return cls(tokens, tuple(text for text in stop if text), sampling)


def _sampling(settings: Mapping[str, Any], seed: int) -> Sampling | None:
    if not settings.get("do_sample"):
        return None
    temperature = float(settings.get("temperature") or 1.0)  # the harness makes 0 of none
    given = settings.get("seed")
    return Sampling(
        temperature,
        int(settings.get("top_k") or 0),
        float(settings.get("top_p") or 1.0),
        seed if given is None else int(given),
    )


def check_not_empty(request: Instance) -> None:
    """Check that there is a prompt.

    Raises:
        HybridError: it is empty. (A tokenizer may add a token of its own, but nothing was asked.)
    """
    if not request.args[0]:
        raise HybridError(
            f"a prompt must hold at least one token; found an empty one ({_name(request)}); mend the task's doc_to_text"
        )


def check_room(request: Instance, role: str, tokens: int, settings: Settings, context_length: int) -> None:
    """Check that model `role` (`base` or `thinking`) can read its prompt of `tokens` tokens and answer it.

    Raises:
        HybridError: the prompt leaves too little of the model's context, `context_length` tokens, to generate in.
    """
    room = context_length - tokens
    if room < settings.max_new_tokens:
        fewer = f"pass --gen_kwargs max_gen_toks={room} or less, or " if room > 0 else ""
        raise HybridError(
            f"prompt and answer must fit the {role} model's context of {context_length} tokens; found a prompt of "
            f"{tokens} tokens and max_gen_toks={settings.max_new_tokens} ({_name(request)}); {fewer}shorten the prompt "
            "(fewer shots)"
        )


def _name(request: Instance) -> str:
    return f"document {request.doc_id} of {request.task_name}"
