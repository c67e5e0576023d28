"""`lm-eval-hybrid run`: an experiment, from its arguments to gap.json and a table."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.commands.arguments import add_experiment, experiment_of, harness_needed, seed
from lm_eval_hybrid.common.errors import HybridError, show_plainly

if TYPE_CHECKING:
    from rich.console import Console

    from lm_eval_hybrid.experiment.definition import Experiment

EXAMPLES = """\
examples:
  lm-eval-hybrid run --tasks gsm8k_embedded,math500_embedded --arms paper --batch_size 100 --out results
  lm-eval-hybrid run --behaviors embedded --tasks gsm8k_embedded --arms base,hybrid,thinking,leave-one-out \\
      --limit 50 --out results
  lm-eval-hybrid run --behaviors ./my-bundle --tasks gsm8k_hybrid,math500_hybrid --arms all \\
      --model_args dtype=bfloat16 --batch_size 16 --out results
After an interruption the same command goes on where it stopped. Other arms and tasks can be added to a folder.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Run arms x tasks on the same documents, loading the models once; write gap.json and show a table."
    )
    parser.epilog = EXAMPLES
    add_experiment(parser)
    add = parser.add_argument
    add("--out", metavar="DIR", type=Path, required=True, help="folder for gap.json and a folder of each arm")
    add("--bootstrap_seed", metavar="N", type=seed, default=0, help="seed of the intervals (default: 0)")
    add("--use_cache", metavar="PATH", help="response cache of the harness, one file for each arm")


def run(args: argparse.Namespace) -> None:
    """Run the experiment that the arguments describe."""
    execute(experiment_of(args), args.out, args.argv, args.console())


def execute(experiment: "Experiment", folder: Path, command: list[str], console: "Console") -> dict[str, Any] | None:
    """Run an experiment, write its gap.json and show its table.

    Returns:
        The content of gap.json. None in all but the first of several processes, which only run their part.
    """
    with harness_needed("run"):
        from lm_eval_hybrid import autoload

        autoload.register()
    from lm_eval_hybrid.experiment import gap_file, running
    from lm_eval_hybrid.report import terminal
    from lm_eval_hybrid.results import outputs
    from lm_eval_hybrid.results.comparison import compare

    console.quiet = os.environ.get("RANK", "0") != "0"
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    show_plainly()
    try:
        experiment = running.run(experiment, folder, lambda line: console.print(line, markup=False, style="bold"))
    except KeyboardInterrupt:
        raise HybridError(f"the run in {folder} was interrupted; the same command goes on from there") from None
    if console.quiet:
        return None
    content = gap_file.write(folder, experiment, command)
    runs, seed = outputs.read(folder), experiment.bootstrap_seed
    console.print(terminal.comparison_table(compare(runs, seed), runs, seed))
    console.print(f"{folder / gap_file.GAP_FILE} written; lm-eval-hybrid report {folder} makes a page", markup=False)
    return content
