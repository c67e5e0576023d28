"""`lm-eval-hybrid`: evaluate, compare arms, discover behaviors, look at bundles.

Only argparse is imported before a command is chosen, so that help comes at once. A command is a module of this folder
with `add_arguments(parser)` and `run(args)`, which returns the exit status or None for 0.
"""

import argparse
import importlib
import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lm_eval_hybrid import __version__
from lm_eval_hybrid.common.errors import HybridError, one_line

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100  # columns of output that goes to no terminal
COMMANDS = {
    "run": "run arms x tasks on the same documents: accuracy, gap recovered, intervals",
    "rerun": "repeat the experiment of a gap.json and show what differs",
    "plan": "show what a run takes, without running it: memory, devices, tokens, time",
    "compare": "show a table of the arms in a folder of results",
    "report": "write the same as a page with every answer, and plots and a table for papers",
    "rescore": "score recorded answers of any model by our rule, and compare with a judge",
    "discover": "find behaviors in a thinking model's traces and write them as a bundle",
    "behaviors": "list, check, compare, make, share and convert behavior bundles",
}
EXAMPLES = """\
examples:
  lm-eval-hybrid run --tasks gsm8k_embedded --arms base,hybrid,thinking --out results
  lm-eval-hybrid compare results --svg comparison.svg
  lm-eval-hybrid eval --model hybrid --model_args arm=base --tasks gsm8k_embedded \\
      --output_path out --log_samples
  lm-eval-hybrid discover --help
  lm-eval-hybrid behaviors list
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status; 2 after a user's mistake, which is printed as one line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["eval"]:  # before argparse, which would take the harness's options for its own
            _eval(argv[1:])
            return 0
        args = _parser(argv).parse_args(argv)
        return args.run(args) or 0
    except HybridError as error:
        message = str(error)
    except OSError as error:
        reason = error.strerror or str(error)
        message = one_line(
            f"{error.filename or 'a file'}: cannot be read or written ({reason}); fix the path, or make room"
        )
    print(f"lm-eval-hybrid: error: {message}", file=sys.stderr)
    return 2


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lm-eval-hybrid",
        description="Base language models, steered by behavior vectors where a thinking model says so.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lm-eval-hybrid {__version__}")
    parser.set_defaults(argv=argv, console=_console)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser("eval", help="run lm_eval, with its arguments, our model and our tasks")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if argv[:1] == [name]:
            module = importlib.import_module(f"lm_eval_hybrid.commands.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def _eval(arguments: list[str]) -> None:
    """Hand over to the harness's own command line, which reads `sys.argv`."""
    from lm_eval_hybrid import autoload

    try:
        autoload.register()
    except ImportError as error:
        raise HybridError(f"{error}; eval needs the harness; pip install 'lm_eval[hf]'") from error
    from lm_eval.__main__ import cli_evaluate

    former = sys.argv
    sys.argv = ["lm_eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = former


def _console() -> "Console":
    from rich.console import Console

    # Answers can hold any character; a terminal that cannot show one must not end the program.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
