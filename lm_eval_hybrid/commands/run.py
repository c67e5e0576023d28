"""`lm-eval-hybrid run` and `lm-eval-hybrid rerun`."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.commands import experiment_args as arguments
from lm_eval_hybrid.commands.experiment_args import experiment_of, harness_needed
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.experiment.definition import Experiment

if TYPE_CHECKING:
    from rich.console import Console

MakeConsole = Callable[[], "Console"]
_RUN = """\
examples:
  lm-eval-hybrid run --tasks gsm8k_embedded,math500_embedded --arms paper --batch_size 100 --out results
  lm-eval-hybrid run --behaviors embedded --tasks gsm8k_embedded --arms base,hybrid,thinking,leave-one-out \\
      --limit 50 --out results
  lm-eval-hybrid run --behaviors ./my-bundle --tasks gsm8k_hybrid,math500_hybrid --arms all \\
      --model_args dtype=bfloat16 --batch_size 16 --out results
Interrupted, the same command goes on where it was. Other arms and tasks can be added to a folder.
"""
_RERUN = """\
example:
  lm-eval-hybrid rerun results/gap.json --out results-again
The exit status is 0 where everything came out as it was, 1 where something did not.
"""


def add_arguments(parser: argparse.ArgumentParser, make_console: MakeConsole) -> None:
    """The arguments of `run`."""
    parser.description = "Run arms x tasks on the same documents, models loaded once; write gap.json and a table."
    parser.epilog, parser.formatter_class = _RUN, argparse.RawDescriptionHelpFormatter
    arguments.add_arguments(parser)
    add = parser.add_argument
    add("--out", metavar="DIR", type=Path, required=True, help="takes a folder for each arm, and gap.json")
    add("--bootstrap_seed", metavar="N", type=int, default=0, help="of the intervals (default: 0)")
    add("--use_cache", metavar="PATH", help="the harness's response cache, a file for each arm")
    parser.set_defaults(run=lambda args: _run(args, make_console))


def add_rerun_arguments(parser: argparse.ArgumentParser, make_console: MakeConsole) -> None:
    """The arguments of `rerun`."""
    parser.description = "Repeat the experiment of a gap.json in a folder of its own, and say what differs."
    parser.epilog, parser.formatter_class = _RERUN, argparse.RawDescriptionHelpFormatter
    parser.add_argument("gap", metavar="GAP.JSON", type=Path, help="as run wrote it")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="for the new runs")
    parser.set_defaults(run=lambda args: _rerun(args, make_console))


def _run(args: argparse.Namespace, make_console: MakeConsole) -> None:
    execute(experiment_of(args), args.out, sys.argv[1:], make_console())


def _rerun(args: argparse.Namespace, make_console: MakeConsole) -> int:
    from lm_eval_hybrid.experiment import gap_file

    then, experiment = gap_file.load(args.gap)
    console = make_console()
    now = execute(experiment, args.out, sys.argv[1:], console)
    if now is None:
        return 0
    for line in gap_file.changed_circumstances(then, now):
        console.print(f"made with other {line}", markup=False)
    found = list(gap_file.changed_runs(then, now))
    for line in found:
        console.print(line, markup=False)
    if not found:
        console.print(f"the same answers in all {len(now['runs'])} runs", markup=False)
    return 1 if found else 0


def execute(experiment: Experiment, folder: Path, command: list[str], console: "Console") -> dict[str, Any] | None:
    """Run an experiment, write its gap.json, show its table. Of several processes the first does; others get None."""
    from lm_eval_hybrid import autoload
    from lm_eval_hybrid.common.errors import show_plainly
    from lm_eval_hybrid.experiment import gap_file
    from lm_eval_hybrid.experiment.running import run
    from lm_eval_hybrid.report import terminal
    from lm_eval_hybrid.results import outputs
    from lm_eval_hybrid.results.comparison import compare

    console.quiet = os.environ.get("RANK", "0") != "0"
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    with harness_needed("run"):
        autoload.register()
    show_plainly()
    try:
        experiment = run(experiment, folder, report=lambda line: console.print(line, markup=False, style="bold"))
    except KeyboardInterrupt:
        raise HybridError(
            f"the run in {folder} must go on to its end; found it interrupted; the same command goes on from there"
        ) from None
    if console.quiet:
        return None
    content = gap_file.write(folder, experiment, command)
    runs = outputs.read(folder)
    console.print(terminal.comparison_table(compare(runs, experiment.bootstrap_seed), runs, experiment.bootstrap_seed))
    console.print(f"{folder / gap_file.GAP_FILE} written; lm-eval-hybrid report {folder} makes a page", markup=False)
    return content
