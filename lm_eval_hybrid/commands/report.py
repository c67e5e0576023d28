"""`lm-eval-hybrid report`: a folder of runs as a page, plots and a table."""

import argparse
import json
import logging
import sys
from importlib.util import find_spec
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
    """Declare the command's arguments."""
    parser.description = (
        "Write one HTML page about all tasks and arms below DIR (made by run, or by lm_eval with --output_path DIR "
        "--log_samples), with every document and answer. For the same figures in the terminal: lm-eval-hybrid compare."
    )
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLES
    add = parser.add_argument
    add("folder", metavar="DIR", type=Path, help="folder to search for results_*.json, at any depth")
    add("--out", metavar="FILE.html", type=Path, help="the page (default: report.html in DIR)")
    add("--plots", metavar="DIR", type=Path, help="also write plots for papers into this folder, as PNG and SVG")
    add("--table", metavar="FILE", type=Path, help="also write the figures as Markdown (.md) or LaTeX (.tex)")
    add("--seed", metavar="N", type=_seed, default=0, help="seed of the bootstrap (default: 0)")


def run(args: argparse.Namespace) -> None:
    """Write the page, and the plots and the table if their flags are given.

    Raises:
        HybridError: the folder has no runs that can be compared, a file cannot be read, the table's ending is unknown,
            or --plots is given and vl-convert is not installed.
    """
    from lm_eval_hybrid.report import cells, charts, comparison_page
    from lm_eval_hybrid.results import outputs
    from lm_eval_hybrid.results.comparison import compare

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # Mistakes in the arguments are reported before the long work.
    if args.table:
        cells.check(args.table)
    if args.plots and find_spec("vl_convert") is None:
        raise HybridError("vl-convert is not installed; --plots needs it; pip install 'lm-eval-hybrid[plots]'")
    runs = outputs.read(args.folder)
    comparison = compare(runs, args.seed)
    page = args.out or args.folder / "report.html"
    comparison_page.write(runs, comparison, args.seed, page, _gap_file(args.folder / "gap.json"))
    _log.info("%s written", page)
    if args.plots:
        charts.write_plots(comparison, args.plots)
        _log.info("plots written to %s", args.plots)
    if args.table:
        cells.write(runs, comparison, args.seed, args.table)
        _log.info("%s written", args.table)


def _gap_file(path: Path) -> dict[str, Any] | None:
    """The content of the gap.json that `run` wrote; None where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise HybridError(f"{path} is not a gap.json as run writes it: {error}; move it away") from None
    return content if isinstance(content, dict) else None


def _seed(text: str) -> int:
    seed = int(text)
    if seed < 0:
        raise argparse.ArgumentTypeError(f"{seed} is negative; a seed is 0 or more")
    return seed
