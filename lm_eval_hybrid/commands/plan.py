"""`lm-eval-hybrid plan`: what a run takes, before it is run."""

import argparse
import sys
from pathlib import Path

from lm_eval_hybrid.commands.arguments import add_experiment, experiment_of, harness_needed
from lm_eval_hybrid.common.errors import HybridError

EXAMPLES = """\
examples:
  lm-eval-hybrid plan --tasks gsm8k_embedded,math500_embedded --limit 100 --batch_size 32 --measure 16
  lm-eval-hybrid plan --tasks gsm8k_embedded --arms all --batch_size 100 --from results
  lm-eval-hybrid plan --behaviors ./my-bundle --tasks gsm8k_hybrid --batch_size 16 \\
      --model_args dtype=bfloat16 --machine two-gpus.yaml
--from reads the results of an earlier run, --measure answers some documents now. Without either, the tokens are the
most that the tasks allow, and the time is unknown. A machine is described in YAML:
  gpus: [24GiB, 24GiB]
  memory: 64GiB
The exit status is 1 if the models do not fit.
"""
_DOCUMENTS = 16  # default of --measure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `run` that decide what is run, and where the figures come from."""
    parser.description = "Show what a run takes, without running it: memory, devices of the models, tokens, time."
    parser.epilog = EXAMPLES
    add_experiment(parser)
    add = parser.add_argument
    add("--machine", metavar="FILE", type=Path, help="plan for the machine in this YAML file (default: this machine)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--from", metavar="DIR", dest="former", type=Path, help="use the results of an earlier run")
    source.add_argument(
        "--measure",
        metavar="N",
        type=int,
        nargs="?",
        const=_DOCUMENTS,
        help=f"answer N documents of each task with every arm, at least a batch (default: {_DOCUMENTS})",
    )


def run(args: argparse.Namespace) -> int:
    """Plan the experiment that the arguments describe. Returns 1 if the models do not fit."""
    with harness_needed("plan"):
        from lm_eval_hybrid import autoload

        autoload.register()
    from lm_eval_hybrid.commands import plan_table as table
    from lm_eval_hybrid.experiment.estimate.plan import make
    from lm_eval_hybrid.models.placement import Machine

    if args.measure is not None and args.measure < 1:
        raise HybridError(f"--measure is {args.measure}; must be 1 or more; leave it out to measure nothing")
    console = args.console()
    machine = None if args.machine is None else Machine.read(args.machine)
    plan = make(experiment_of(args), machine, args.former, args.measure or 0, lambda line: print(line, file=sys.stderr))
    console.print(table.render(plan))
    if plan.complaint:
        console.print(plan.complaint, markup=False, style="bold")
    return 1 if plan.complaint else 0
