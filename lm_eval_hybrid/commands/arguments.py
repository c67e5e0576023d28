"""Arguments that several commands share, and the experiment that they describe."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from lm_eval_hybrid.experiment.definition import Experiment


def seed(text: str) -> int:
    """The type of a seed's argument."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative; a seed is 0 or more")
    return number


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that decide what an experiment runs."""
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
    add("--limit", metavar="N", type=float, help="documents of each task (below 1: a share of them)")
    add("--batch_size", metavar="N", default="1", help="answers at once, or auto (default: 1)")
    add("--device", metavar="DEVICE", help="of both models (default: cuda if there is one)")
    add("--model_args", metavar="K=V,K=V", default="", help="other arguments of model hybrid: base=, thinking=, dtype=")
    add("--gen_kwargs", metavar="K=V,K=V", default="", help="generation settings, which override the tasks'")
    add("--num_fewshot", metavar="N", type=int, help="examples in the prompt")
    add("--apply_chat_template", action="store_true", help="put the prompt into the base tokenizer's chat template")
    add("--system_instruction", metavar="TEXT", help="system prompt")
    add("--metadata", metavar="JSON", default="{}", help="""passed to the tasks' data sets: '{"data_dir": "DIR"}'""")
    add("--include_path", metavar="DIR", help="folder of more task YAMLs")
    add("--seed", metavar="N", type=int, default=0, help="seed of decoding and of the harness (default: 0)")


def experiment_of(args: argparse.Namespace) -> "Experiment":
    """The experiment that the arguments describe.

    Raises:
        HybridError: they describe none.
    """
    from lm_eval_hybrid.experiment.definition import LEAVE_ONE_OUT, WITHOUT, Experiment, named_arms, read

    keys: list[str] = []
    if LEAVE_ONE_OUT in args.arms or WITHOUT in args.arms:
        from lm_eval_hybrid.bundles.bundle import Bundle
        from lm_eval_hybrid.bundles.store.resolve import resolve

        keys = [behavior.key for behavior in Bundle.load(resolve(args.behaviors)).manifest.behaviors]
    fields = {name: getattr(args, name) for name in Experiment.model_fields if hasattr(args, name)}
    fields |= {
        "tasks": _listed(args.tasks),
        "arms": named_arms(_listed(args.arms), keys),
        "model_args": _pairs(args.model_args),
        "gen_kwargs": _pairs(args.gen_kwargs),
        "metadata": _json(args.metadata),
    }
    return read(fields, "the arguments")


@contextmanager
def harness_needed(command: str) -> Iterator[None]:
    """Report a missing harness as one line."""
    try:
        yield
    except ImportError as error:
        raise HybridError(f"{error}; {command} needs the harness; pip install 'lm_eval[hf]'") from error


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _pairs(text: str) -> dict[str, Any]:
    if not text:
        return {}
    from lm_eval.utils import simple_parse_args_string

    try:
        return dict(simple_parse_args_string(text))
    except (ValueError, AssertionError, IndexError) as error:
        raise HybridError(f"{text}: not arguments ({error}); write NAME=VALUE,NAME=VALUE") from None


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise HybridError(f"--metadata {text} is not JSON ({error}); give a JSON object") from None
    if not isinstance(value, dict):
        raise HybridError(f"--metadata {text} is a {type(value).__name__}; give a JSON object")
    return value
