"""`lm-eval-hybrid run` and `lm-eval-hybrid rerun`."""

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.errors import HybridError
from lm_eval_hybrid.experiment import plan
from lm_eval_hybrid.experiment.plan import Experiment

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
    add = parser.add_argument
    add("--tasks", metavar="T,T", required=True, help="tasks and groups of the harness that score exact_match")
    add("--out", metavar="DIR", type=Path, required=True, help="takes a folder for each arm, and gap.json")
    add("--behaviors", metavar="B", default="embedded", help="the bundle (default: embedded)")
    add(
        "--arms",
        metavar="A,A",
        default="paper",
        help="paper (default: base, hybrid, thinking, bias-only, random-category, random-vectors), all, leave-one-out "
        "(the hybrid without each behavior in turn), or arms by name",
    )
    add("--limit", metavar="N", type=float, help="documents of each task (below 1: share of them)")
    add("--batch_size", metavar="N", default="1", help="answers at once, or auto (default: 1)")
    add("--device", metavar="DEVICE", help="of both models (default: cuda where there is one)")
    add("--model_args", metavar="K=V,K=V", default="", help="more of model hybrid: base=, thinking=, dtype=, ...")
    add("--gen_kwargs", metavar="K=V,K=V", default="", help="of generation, over what the tasks say")
    add("--num_fewshot", metavar="N", type=int, help="examples in the prompt")
    add("--apply_chat_template", action="store_true", help="give the base its tokenizer's template")
    add("--system_instruction", metavar="TEXT", help="before the prompt")
    add("--metadata", metavar="JSON", default="{}", help="""for the tasks' data: '{"data_dir": "DIR"}'""")
    add("--include_path", metavar="DIR", help="a folder of more task YAMLs")
    add("--seed", metavar="N", type=int, default=0, help="of decoding and of the harness (default: 0)")
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
    execute(_experiment(args), args.out, sys.argv[1:], make_console())


def _rerun(args: argparse.Namespace, make_console: MakeConsole) -> int:
    from lm_eval_hybrid.experiment import gap_file, rerun

    then, experiment = gap_file.load(args.gap)
    console = make_console()
    now = execute(experiment, args.out, sys.argv[1:], console)
    if now is None:
        return 0
    for line in rerun.circumstances(then, now):
        console.print(f"made with other {line}", markup=False)
    found = rerun.differences(then, now)
    for line in found:
        console.print(line, markup=False)
    if not found:
        console.print(f"the same answers in all {len(now['runs'])} runs", markup=False)
    return 1 if found else 0


def execute(experiment: Experiment, folder: Path, arguments: list[str], console: "Console") -> dict[str, Any] | None:
    """Run an experiment, write its gap.json, show its table. Of several processes the first does; others get None."""
    from lm_eval_hybrid import autoload
    from lm_eval_hybrid.errors import show_plainly
    from lm_eval_hybrid.evaluation import outputs
    from lm_eval_hybrid.evaluation.comparison import compare
    from lm_eval_hybrid.experiment import gap_file
    from lm_eval_hybrid.experiment.running import run
    from lm_eval_hybrid.report import terminal

    console.quiet = os.environ.get("RANK", "0") != "0"
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    with _harness_needed():
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
    content = gap_file.write(folder, experiment, arguments)
    runs = outputs.read(folder)
    console.print(terminal.render(compare(runs, experiment.bootstrap_seed), runs, experiment.bootstrap_seed))
    console.print(f"{folder / gap_file.GAP_FILE} written; lm-eval-hybrid report {folder} makes a page", markup=False)
    return content


def _experiment(args: argparse.Namespace) -> Experiment:
    keys: list[str] = []
    if plan.LEAVE_ONE_OUT in args.arms or plan.WITHOUT in args.arms:
        from lm_eval_hybrid.behaviors.bundle import Bundle
        from lm_eval_hybrid.behaviors.resolve import resolve

        keys = [behavior.key for behavior in Bundle.load(resolve(args.behaviors)).manifest.behaviors]
    fields = {name: getattr(args, name) for name in Experiment.model_fields if hasattr(args, name)}
    fields |= {
        "tasks": _listed(args.tasks),
        "arms": plan.named_arms(_listed(args.arms), keys),
        "model_args": _pairs(args.model_args),
        "gen_kwargs": _pairs(args.gen_kwargs),
        "metadata": _json(args.metadata),
    }
    return plan.read(fields, "the arguments of run")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _pairs(text: str) -> dict[str, Any]:
    if not text:
        return {}
    from lm_eval.utils import simple_parse_args_string

    try:
        return dict(simple_parse_args_string(text))
    except (ValueError, AssertionError, IndexError) as error:
        raise HybridError(f"arguments must be NAME=VALUE,NAME=VALUE; found {text}: {error}; mend it") from None


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise HybridError(f"--metadata must be a JSON object; found {text}: {error}; mend it") from None
    if not isinstance(found, dict):
        raise HybridError(f"--metadata must be a JSON object; found {text}; mend it")
    return found


@contextlib.contextmanager
def _harness_needed() -> Any:
    try:
        yield
    except ImportError as error:
        raise HybridError(f"run needs the harness; {error}; pip install 'lm_eval[hf]'") from error
