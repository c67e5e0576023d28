"""`lm-eval-hybrid rerun`: the experiment of a gap.json again, and how its results differ."""

import argparse
from pathlib import Path

from lm_eval_hybrid.commands.run import execute

EXAMPLES = """\
example:
  lm-eval-hybrid rerun results/gap.json --out results-again
The exit status is 0 if all answers are the same, 1 if some differ.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = "Repeat the experiment of a gap.json in another folder, and show what differs."
    parser.epilog = EXAMPLES
    parser.add_argument("gap", metavar="GAP.JSON", type=Path, help="file that `run` wrote")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the new runs")


def run(args: argparse.Namespace) -> int:
    """Run the experiment again. Returns 1 if an answer differs."""
    from lm_eval_hybrid.experiment import gap_file

    then, experiment = gap_file.load(args.gap)
    console = args.console()
    now = execute(experiment, args.out, args.argv, console)
    if now is None:
        return 0
    for line in gap_file.changed_circumstances(then, now):
        console.print(f"made with other {line}", markup=False)
    changes = list(gap_file.changed_runs(then, now))
    for line in changes or [f"the same answers in all {len(now['runs'])} runs"]:
        console.print(line, markup=False)
    return 1 if changes else 0
