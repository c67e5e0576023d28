"""`lm-eval-hybrid report`: a folder of runs as a page, plots and a table."""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from lm_eval_hybrid.common.errors import HybridError

_log = logging.getLogger(__name__)
EXAMPLES = """\
examples:
  lm-eval-hybrid report results
  lm-eval-hybrid report results --out page.html --plots figures --table results.tex
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.description = (
        "One HTML page of all tasks and arms below DIR (written with --output_path DIR --log_samples, or by run), "
        "with every document and answer. The same figures in the terminal: lm-eval-hybrid compare."
    )
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLES
    add = parser.add_argument
    add("folder", metavar="DIR", type=Path, help="searched for results_*.json to any depth")
    add("--out", metavar="FILE.html", type=Path, help="the page (default: report.html in DIR)")
    add("--plots", metavar="DIR", type=Path, help="also write plots for papers there, as PNG and SVG")
    add("--table", metavar="FILE", type=Path, help="also write the figures as Markdown (.md) or LaTeX (.tex)")
    add("--seed", metavar="N", type=_seed, default=0, help="of the bootstrap (default: 0)")


def run(args: argparse.Namespace) -> None:
    """Writes what is asked for.

    Raises:
        HybridError: for a folder without runs that can be compared, a file that cannot be read, or plots where
            matplotlib is missing.
    """
    from lm_eval_hybrid.report import comparison_page, plots, table
    from lm_eval_hybrid.results import outputs
    from lm_eval_hybrid.results.comparison import compare

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # What can be wrong with the arguments is said before the long work begins.
    if args.table:
        table.check(args.table)
    if args.plots:
        plots.check()
    runs = outputs.read(args.folder)
    found = compare(runs, args.seed)
    page = args.out or args.folder / "report.html"
    comparison_page.write(runs, found, args.seed, page, _made(args.folder / "gap.json"))
    _log.info("%s written", page)
    if args.plots:
        plots.write(found, args.plots)
        _log.info("plots written to %s", args.plots)
    if args.table:
        table.write(runs, found, args.seed, args.table)
        _log.info("%s written", args.table)


def _made(path: Path) -> dict[str, Any] | None:
    """What `run` says of how the runs were made; None where it did not make them."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise HybridError(f"{path}: must be a gap.json, as run writes it; found {error}; move it away") from None
    return content if isinstance(content, dict) else None


def _seed(text: str) -> int:
    seed = int(text)
    if seed < 0:
        raise argparse.ArgumentTypeError(f"a seed is 0 or more; found {seed}")
    return seed
