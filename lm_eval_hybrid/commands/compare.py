"""`lm-eval-hybrid compare`: the arms in a folder of results as a table, and one answer of the hybrid."""

import argparse
import io
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.commands.arguments import seed
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from rich.console import Console

SVG_WIDTH = 100  # columns
EXAMPLES = """\
examples:
  lm-eval-hybrid compare results
  lm-eval-hybrid compare results --document gsm8k_embedded:7 --svg comparison.svg
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Show one table of all tasks and arms below DIR (made by run, or by lm_eval with --output_path DIR\n"
        "--log_samples), and one answer of the hybrid with its steered tokens marked by behavior."
    )
    parser.epilog = EXAMPLES
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder to search for results_*.json, at any depth")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="also write the output as a picture")
    parser.add_argument("--seed", metavar="N", type=seed, default=0, help="seed of the bootstrap (default: 0)")
    parser.add_argument(
        "--document",
        metavar="ID",
        help="doc_id of the answer to show, or TASK:ID (default: one that only the hybrid gets right)",
    )


def run(args: argparse.Namespace) -> None:
    """Show the comparison, and write the picture if asked."""
    from lm_eval_hybrid.report import answer, terminal
    from lm_eval_hybrid.results import comparison, outputs

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    runs = outputs.read(args.folder)
    table = terminal.comparison_table(comparison.compare(runs, args.seed), runs, args.seed)
    shown = answer.choose(runs, args.document)

    def show(console: "Console") -> None:
        console.print(table)
        if shown is not None:
            console.print()
            console.print(answer.render(shown, colour=console.color_system is not None and not console.no_color))

    show(args.console())
    if shown is None:
        logging.info("no answer is shown: that takes a run of arm hybrid with token records")
    if args.svg:
        from rich.console import Console

        paper = Console(width=SVG_WIDTH, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
        show(paper)
        try:
            paper.save_svg(str(args.svg), title="lm-eval-hybrid compare")
        except OSError as error:
            raise HybridError(f"--svg {args.svg} cannot be written ({error.strerror}); name another file") from error
