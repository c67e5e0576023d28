"""A harness request, read and checked before anything is generated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from lm_eval_hybrid.errors import HybridError

# Greedy decoding is the same whatever these say.
_WITHOUT_EFFECT = {"do_sample", "temperature", "top_p", "top_k", "min_p", "num_beams", "use_cache"}


@dataclass(frozen=True)
class Limits:
    """When an answer ends at the latest: after `max_new_tokens` tokens, or before one of the strings `stop`."""

    max_new_tokens: int
    stop: tuple[str, ...]

    @classmethod
    def of(cls, generation_kwargs: Mapping[str, Any], default_tokens: int) -> "Limits":
        """Read a task's `generation_kwargs`.

        Raises:
            HybridError: they ask for sampling, beams, no tokens, or anything else that greedy decoding cannot do; or
                a value is not of its kind.
        """
        try:
            settings = dict(normalize_gen_kwargs(dict(generation_kwargs), default_tokens))
        except (TypeError, ValueError) as error:
            raise HybridError(
                f"generation settings must be of their kind; found {dict(generation_kwargs)}: {error}; mend them"
            ) from error
        if settings.get("do_sample") or settings.get("num_beams", 1) != 1:
            raise HybridError(
                f"model hybrid decodes greedily; found {dict(generation_kwargs)}; pass --gen_kwargs do_sample=False"
            )
        stop = handle_stop_sequences(settings.pop("until"), eos=None)
        if wrong := [text for text in stop if not isinstance(text, str)]:
            raise HybridError(f"until must be strings; found {wrong[0]!r}; mend --gen_kwargs or the task")
        tokens = settings.pop("max_gen_toks")
        unknown = sorted(settings.keys() - _WITHOUT_EFFECT)
        if unknown:
            raise HybridError(
                f"model hybrid takes until, max_gen_toks and do_sample=False; found {', '.join(unknown)}; leave it out "
                "of the task's generation_kwargs and of --gen_kwargs"
            )
        if tokens < 1:
            raise HybridError(f"max_gen_toks must be 1 or more; found {tokens}; pass --gen_kwargs max_gen_toks=256")
        return cls(tokens, tuple(text for text in stop if text))


def check_not_empty(request: Instance) -> None:
    """Check that there is a prompt.

    Raises:
        HybridError: it is empty. (A tokenizer may add a token of its own, but nothing was asked.)
    """
    if not request.args[0]:
        raise HybridError(
            f"a prompt must hold at least one token; found an empty one ({_name(request)}); mend the task's doc_to_text"
        )


def check_room(request: Instance, role: str, tokens: int, limits: Limits, context_length: int) -> None:
    """Check that model `role` (`base` or `thinking`) can read its prompt of `tokens` tokens and answer it.

    Raises:
        HybridError: the prompt leaves too little of the model's context, `context_length` tokens, to generate in.
    """
    room = context_length - tokens
    if room < limits.max_new_tokens:
        fewer = f"pass --gen_kwargs max_gen_toks={room} or less, or " if room > 0 else ""
        raise HybridError(
            f"prompt and answer must fit the {role} model's context of {context_length} tokens; found a prompt of "
            f"{tokens} tokens and max_gen_toks={limits.max_new_tokens} ({_name(request)}); {fewer}shorten the prompt "
            "(fewer shots)"
        )


def _name(request: Instance) -> str:
    return f"document {request.doc_id} of {request.task_name}"
