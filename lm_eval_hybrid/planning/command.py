"""`lm-eval-hybrid plan`: what a run takes, before it is run."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.errors import HybridError
from lm_eval_hybrid.experiment import plan
from lm_eval_hybrid.experiment.plan import Experiment

if TYPE_CHECKING:
    from rich.console import Console

    from lm_eval_hybrid.planning.devices import Machine
    from lm_eval_hybrid.planning.documents import TaskRequests
    from lm_eval_hybrid.planning.estimate import ArmEstimate
    from lm_eval_hybrid.planning.placement import Need, Place

_EXAMPLES = """\
examples:
  lm-eval-hybrid plan --tasks gsm8k_embedded,math500_embedded --limit 100 --batch_size 32 --measure 16
  lm-eval-hybrid plan --tasks gsm8k_embedded --arms all --batch_size 100 --from results
  lm-eval-hybrid plan --behaviors ./my-bundle --tasks gsm8k_hybrid --batch_size 16 \\
      --model_args dtype=bfloat16 --machine two-gpus.yaml
--from reads what an earlier run left, --measure answers some documents now; without either, tokens are at most
what the tasks allow, and time is unknown. A machine is described as in:
  gpus: [24GiB, 24GiB]
  memory: 64GiB
The exit status is 1 where the models do not fit.
"""
_DOCUMENTS = 16  # that are measured of each task, unless the user says so


@dataclass(frozen=True)
class Plan:
    """What was found out.

    Attributes:
        names: of the models that are needed, by role.
        needs: of those that are loaded here.
        places: where these go; empty where they do not fit.
        complaint: why they do not.
    """

    names: "dict[str, str]"
    needs: "tuple[Need, ...]"
    places: "dict[str, Place]"
    complaint: str
    machine: "Machine"
    tasks: "tuple[TaskRequests, ...]"
    estimates: "tuple[ArmEstimate, ...]"


def add_arguments(parser: argparse.ArgumentParser, make_console: "Callable[[], Console]") -> None:
    """The arguments of `plan`: those of `run` that decide what is run, and where figures come from."""
    parser.description = "What a run takes, before it is run: memory and where the models go, tokens, time, requests."
    parser.epilog, parser.formatter_class = _EXAMPLES, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--tasks", metavar="T,T", required=True, help="tasks and groups of the harness")
    add("--behaviors", metavar="B", default="embedded", help="the bundle (default: embedded)")
    add("--arms", metavar="A,A", default="paper", help="as for run (default: paper)")
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
    add("--machine", metavar="FILE", type=Path, help="plan for the machine that this YAML describes (default: this)")
    known = parser.add_mutually_exclusive_group()
    known.add_argument("--from", metavar="DIR", dest="former", type=Path, help="results of an earlier run")
    known.add_argument(
        "--measure",
        metavar="N",
        type=int,
        nargs="?",
        const=_DOCUMENTS,
        help=f"answer N documents of each task by every arm, at least a batch (default: {_DOCUMENTS})",
    )
    parser.set_defaults(run=lambda args: _run(args, make_console))


def make(
    experiment: Experiment,
    machine: "Machine | None" = None,
    former: Path | None = None,
    documents: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Plan an experiment.

    Args:
        machine: another one than this.
        former: a folder of results to take rates from.
        documents: of each task, to be measured now; 0: none.
        report: is told, in a line, what goes on.

    Raises:
        HybridError: for whatever would keep the experiment from being run, but models that do not fit.
    """
    from lm_eval.tasks import TaskManager

    from lm_eval_hybrid.planning import documents as of_tasks
    from lm_eval_hybrid.planning import estimate, rates
    from lm_eval_hybrid.planning.devices import Machine
    from lm_eval_hybrid.planning.models import Models

    machine = machine or Machine.here()
    models = Models.of(experiment, machine)
    measured = rates.NOTHING if former is None else rates.read(former)
    tokenizer = of_tasks.tokenizer_of(models.sources["base"], models.theirs)
    manager = TaskManager(include_path=experiment.include_path, metadata=experiment.metadata)
    asked = of_tasks.requests(experiment, manager, tokenizer)
    slots = models.slots(max((max(task.prompts, default=0) + task.limit for task in asked), default=1))
    if documents:
        from lm_eval_hybrid.planning.measuring import measure

        measured = measure(experiment, asked, documents, slots, report)
    estimates = estimate.estimate(experiment.arms, asked, slots, measured, models.remote)
    needs = models.needs(slots, estimate.longest(estimates, asked))
    places, complaint = models.places(needs)
    return Plan(dict(models.names), needs, places, complaint, machine, asked, estimates)


def _run(args: argparse.Namespace, make_console: "Callable[[], Console]") -> int:
    from lm_eval_hybrid import autoload

    try:
        autoload.register()
    except ImportError as error:
        raise HybridError(f"plan needs the harness; {error}; pip install 'lm_eval[hf]'") from error
    from lm_eval_hybrid.planning import table
    from lm_eval_hybrid.planning.devices import Machine

    if args.measure is not None and args.measure < 1:
        raise HybridError(f"--measure must be 1 or more; found {args.measure}; leave it out to measure nothing")
    console = make_console()
    machine = None if args.machine is None else Machine.read(args.machine)
    found = make(
        _experiment(args),
        machine,
        args.former,
        args.measure or 0,
        lambda line: print(line, file=sys.stderr),
    )
    console.print(table.render(found))
    if found.complaint:
        console.print(found.complaint, markup=False, style="bold")
    return 1 if found.complaint else 0


def _experiment(args: argparse.Namespace) -> Experiment:
    keys: list[str] = []
    if plan.LEAVE_ONE_OUT in args.arms or plan.WITHOUT in args.arms:
        from lm_eval_hybrid.behaviors.bundle import Bundle
        from lm_eval_hybrid.behaviors.resolve import resolve

        keys = [behavior.key for behavior in Bundle.load(resolve(args.behaviors)).manifest.behaviors]
    fields = {name: getattr(args, name) for name in Experiment.model_fields if hasattr(args, name)}
    fields |= {
        "tasks": tuple(dict.fromkeys(args.tasks.split(","))),
        "arms": plan.named_arms([name.strip() for name in args.arms.split(",")], keys),
        "model_args": _pairs(args.model_args),
        "gen_kwargs": _pairs(args.gen_kwargs),
    }
    try:
        fields["metadata"] = json.loads(args.metadata)
    except ValueError as error:
        raise HybridError(f"--metadata must be a JSON object; found {args.metadata}: {error}; mend it") from None
    return plan.read(fields, "the arguments of plan")


def _pairs(text: str) -> dict[str, Any]:
    from lm_eval.utils import simple_parse_args_string

    try:
        return dict(simple_parse_args_string(text))
    except (ValueError, AssertionError, IndexError) as error:
        raise HybridError(f"arguments must be NAME=VALUE,NAME=VALUE; found {text}: {error}; mend it") from None
