"""What `run` and `plan` are told on the command line, and the experiment that it is."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.experiment import definition
from lm_eval_hybrid.experiment.definition import Experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that decide what is run."""
    add = parser.add_argument
    add("--tasks", metavar="T,T", required=True, help="tasks and groups of the harness that score exact_match")
    add("--behaviors", metavar="B", default="embedded", help="the bundle (default: embedded)")
    add(
        "--arms",
        metavar="A,A",
        default="paper",
        help="paper (default: base, hybrid, thinking, bias-only, random-category, random-vectors), all, leave-one-out "
        "(the hybrid without each behavior in turn), or arms by name",
    )
    add("--limit", metavar="N", type=float, help="documents of each task (below 1: share of them)")
    add("--batch_size", metavar="N", default="1", help="answers at once, or auto (default: 1)")
    add("--device", metavar="DEVICE", help="of both models (default: cuda where there is one)")
    add("--model_args", metavar="K=V,K=V", default="", help="more of model hybrid: base=, thinking=, dtype=, ...")
    add("--gen_kwargs", metavar="K=V,K=V", default="", help="of generation, over what the tasks say")
    add("--num_fewshot", metavar="N", type=int, help="examples in the prompt")
    add("--apply_chat_template", action="store_true", help="give the base its tokenizer's template")
    add("--system_instruction", metavar="TEXT", help="before the prompt")
    add("--metadata", metavar="JSON", default="{}", help="""for the tasks' data: '{"data_dir": "DIR"}'""")
    add("--include_path", metavar="DIR", help="a folder of more task YAMLs")
    add("--seed", metavar="N", type=int, default=0, help="of decoding and of the harness (default: 0)")


def experiment_of(args: argparse.Namespace) -> Experiment:
    """The experiment that the arguments describe.

    Raises:
        HybridError: they describe none.
    """
    keys: list[str] = []
    if definition.LEAVE_ONE_OUT in args.arms or definition.WITHOUT in args.arms:
        from lm_eval_hybrid.bundles.bundle import Bundle
        from lm_eval_hybrid.bundles.store.resolve import resolve

        keys = [behavior.key for behavior in Bundle.load(resolve(args.behaviors)).manifest.behaviors]
    fields = {name: getattr(args, name) for name in Experiment.model_fields if hasattr(args, name)}
    fields |= {
        "tasks": _listed(args.tasks),
        "arms": definition.named_arms(_listed(args.arms), keys),
        "model_args": _pairs(args.model_args),
        "gen_kwargs": _pairs(args.gen_kwargs),
        "metadata": _json(args.metadata),
    }
    return definition.read(fields, "the arguments")


@contextmanager
def harness_needed(command: str) -> Iterator[None]:
    """Says plainly that the harness is missing."""
    try:
        yield
    except ImportError as error:
        raise HybridError(f"{command} needs the harness; {error}; pip install 'lm_eval[hf]'") from error


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _pairs(text: str) -> dict[str, Any]:
    if not text:
        return {}
    from lm_eval.utils import simple_parse_args_string

    try:
        return dict(simple_parse_args_string(text))
    except (ValueError, AssertionError, IndexError) as error:
        raise HybridError(f"arguments must be NAME=VALUE,NAME=VALUE; found {text}: {error}; mend it") from None


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise HybridError(f"--metadata must be a JSON object; found {text}: {error}; mend it") from None
    if not isinstance(found, dict):
        raise HybridError(f"--metadata must be a JSON object; found {text}; mend it")
    return found
