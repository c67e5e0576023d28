"""`lm-eval-hybrid plan`: what a run takes, before it is run."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.commands import experiment_args as arguments
from lm_eval_hybrid.commands.experiment_args import experiment_of, harness_needed
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.experiment.plan import Experiment

if TYPE_CHECKING:
    from rich.console import Console

    from lm_eval_hybrid.experiment.estimate.documents import TaskRequests
    from lm_eval_hybrid.experiment.estimate.estimate import ArmEstimate
    from lm_eval_hybrid.models.placement import Machine, ModelNeed, Placement

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
    needs: "tuple[ModelNeed, ...]"
    places: "dict[str, Placement]"
    complaint: str
    machine: "Machine"
    tasks: "tuple[TaskRequests, ...]"
    estimates: "tuple[ArmEstimate, ...]"


def add_arguments(parser: argparse.ArgumentParser, make_console: "Callable[[], Console]") -> None:
    """The arguments of `plan`: those of `run` that decide what is run, and where figures come from."""
    parser.description = "What a run takes, before it is run: memory and where the models go, tokens, time, requests."
    parser.epilog, parser.formatter_class = _EXAMPLES, argparse.RawDescriptionHelpFormatter
    arguments.add_arguments(parser)
    add = parser.add_argument
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

    from lm_eval_hybrid.experiment.estimate import documents as of_tasks
    from lm_eval_hybrid.experiment.estimate import estimate, rates
    from lm_eval_hybrid.experiment.estimate.models import Models
    from lm_eval_hybrid.models.placement import Machine

    machine = machine or Machine.local()
    models = Models.of(experiment, machine)
    measured = rates.NOTHING if former is None else rates.read(former)
    tokenizer = of_tasks.tokenizer_of(models.sources["base"], models.theirs)
    manager = TaskManager(include_path=experiment.include_path, metadata=experiment.metadata)
    asked = of_tasks.requests(experiment, manager, tokenizer)
    slots = models.slots(max((max(task.prompts, default=0) + task.limit for task in asked), default=1))
    if documents:
        from lm_eval_hybrid.experiment.estimate.measuring import measure

        measured = measure(experiment, asked, documents, slots, report)
    estimates = estimate.estimate(experiment.arms, asked, slots, measured, models.remote)
    needs = models.needs(slots, estimate.longest(estimates, asked))
    places, complaint = models.places(needs)
    return Plan(dict(models.names), needs, places, complaint, machine, asked, estimates)


def _run(args: argparse.Namespace, make_console: "Callable[[], Console]") -> int:
    from lm_eval_hybrid import autoload

    with harness_needed("plan"):
        autoload.register()
    from lm_eval_hybrid.commands import plan_table as table
    from lm_eval_hybrid.models.placement import Machine

    if args.measure is not None and args.measure < 1:
        raise HybridError(f"--measure must be 1 or more; found {args.measure}; leave it out to measure nothing")
    console = make_console()
    machine = None if args.machine is None else Machine.read(args.machine)
    found = make(
        experiment_of(args),
        machine,
        args.former,
        args.measure or 0,
        lambda line: print(line, file=sys.stderr),
    )
    console.print(table.render(found))
    if found.complaint:
        console.print(found.complaint, markup=False, style="bold")
    return 1 if found.complaint else 0
