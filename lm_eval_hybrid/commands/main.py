"""`lm-eval-hybrid`: evaluate, compare arms, discover behaviors, look at bundles.

Only argparse is imported before a command is chosen, so that help comes at once.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid import __version__
from lm_eval_hybrid.common.errors import HybridError, one_line

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100  # columns of pictures and of output that is no terminal's
EXAMPLES = """\
examples:
  lm-eval-hybrid eval --model hybrid --tasks gsm8k_embedded --output_path out --log_samples
  lm-eval-hybrid eval --model hybrid --model_args arm=base --tasks gsm8k_embedded \\
      --output_path out --log_samples
  lm-eval-hybrid compare out --svg comparison.svg
  lm-eval-hybrid discover --help
  lm-eval-hybrid behaviors list
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: the command's, 0, or 2 after a user's mistake, one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["eval"]:  # before argparse, which would take the harness's options for its own
            _eval(argv[1:])
        else:
            args = _parser(argv).parse_args(argv)
            return args.run(args) or 0
    except HybridError as error:
        print(f"lm-eval-hybrid: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = "a file" if error.filename is None else error.filename
        print(
            one_line(
                f"lm-eval-hybrid: error: {where}: must be there, or take what is written; found "
                f"{error.strerror or error}; mend the path, or make room"
            ),
            file=sys.stderr,
        )
        return 2
    return 0


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lm-eval-hybrid",
        description="Base language models, steered by behavior vectors where a thinking model says so.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lm-eval-hybrid {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    commands.add_parser("eval", help="run lm_eval with model hybrid and its tasks known to it; same arguments")

    compare = commands.add_parser(
        "compare",
        help="compare the arms found in a folder of lm_eval outputs",
        description="One table of all tasks and arms below DIR (written with --output_path DIR "
        "--log_samples), and one answer of the hybrid with its steered tokens marked by behavior.",
    )
    compare.add_argument("folder", metavar="DIR", type=Path, help="searched for results_*.json to any depth")
    compare.add_argument("--svg", metavar="FILE", type=Path, help="also write what is shown as a picture")
    compare.add_argument("--seed", metavar="N", type=_seed, default=0, help="of the bootstrap (default: 0)")
    compare.add_argument(
        "--document",
        metavar="ID",
        help="doc_id of the answer to show, or TASK:ID (default: one that only the hybrid gets right)",
    )
    compare.set_defaults(run=_compare)

    report = commands.add_parser("report", help="the same as a page with every answer, plots and a table for papers")
    if argv[:1] == ["report"]:
        from lm_eval_hybrid.commands import report as report_command

        report_command.add_arguments(report)
        report.set_defaults(run=report_command.run)

    rescore = commands.add_parser(
        "rescore", help="score recorded answers anew, all models alike; compare with judged ones"
    )
    if argv[:1] == ["rescore"]:
        from lm_eval_hybrid.commands import rescore as rescore_command

        rescore_command.add_arguments(rescore, _console)
        rescore.set_defaults(run=rescore_command.run)

    run = commands.add_parser("run", help="run arms x tasks on the same documents; what gap is recovered, at what cost")
    rerun = commands.add_parser("rerun", help="repeat the experiment of a gap.json; say what differs")
    if argv[:1] in (["run"], ["rerun"]):
        from lm_eval_hybrid.commands import run as experiment

        experiment.add_arguments(run, _console)
        experiment.add_rerun_arguments(rerun, _console)

    plan = commands.add_parser("plan", help="what a run takes: memory, where models go, tokens, time; runs nothing")
    if argv[:1] == ["plan"]:
        from lm_eval_hybrid.commands import plan as planning

        planning.add_arguments(plan, _console)

    discover = commands.add_parser("discover", help="find behaviors in a thinking model's traces; write a bundle")
    if argv[:1] == ["discover"]:
        from lm_eval_hybrid.commands import discover as command

        command.add_arguments(discover, _console)
        discover.set_defaults(run=command.run)

    behaviors = commands.add_parser("behaviors", help="list, check, compare, make, share and convert behavior bundles")
    if argv[:1] == ["behaviors"]:
        from lm_eval_hybrid.commands import behaviors as behaviors_command

        behaviors_command.add_arguments(behaviors, _console)
    return parser


def _eval(arguments: list[str]) -> None:
    """Hand over to the harness's own command line, which reads `sys.argv`."""
    from lm_eval_hybrid import autoload

    try:
        autoload.register()
    except ImportError as error:
        raise HybridError(f"eval needs the harness; {error}; pip install 'lm_eval[hf]'") from error
    from lm_eval.__main__ import cli_evaluate

    former = sys.argv
    sys.argv = ["lm_eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = former


def _compare(args: argparse.Namespace) -> None:
    from lm_eval_hybrid.report import answer, terminal
    from lm_eval_hybrid.results import comparison, outputs

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    found = outputs.read(args.folder)
    table = terminal.comparison_table(comparison.compare(found, args.seed), found, args.seed)
    shown = answer.choose(found, args.document)

    def show(console: "Console") -> None:
        console.print(table)
        if shown is not None:
            console.print()
            console.print(answer.render(shown, colour=console.color_system is not None and not console.no_color))

    show(_console())
    if shown is None:
        logging.info("no answer is shown: that takes a run of arm hybrid with token records")
    if args.svg:
        import io

        from rich.console import Console

        paper = Console(width=WIDTH, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
        show(paper)
        try:
            paper.save_svg(str(args.svg), title="lm-eval-hybrid compare")
        except OSError as error:
            raise HybridError(f"--svg needs a file that can be written; {error}; name another") from error


def _seed(text: str) -> int:
    seed = int(text)
    if seed < 0:
        raise argparse.ArgumentTypeError(f"a seed is 0 or more; found {seed}")
    return seed


def _console() -> "Console":
    from rich.console import Console

    # Answers can hold any character; a terminal that cannot show one must not end the program.
    sys.stdout.reconfigure(errors="replace")
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


if __name__ == "__main__":
    raise SystemExit(main())
