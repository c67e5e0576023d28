"""`lm-eval-hybrid rescore`: recorded answers, scored anew, beside what somebody judged."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, RenderableType

    from lm_eval_hybrid.judging.verdicts import Verdict
    from lm_eval_hybrid.results.recordings import Recording, Score

BASE, HYBRID, THINKING = "base_model", "hybrid_model", "thinking_model"
LONG = 200  # answers: more are worth a progress bar
ABSENT = "-"
EXAMPLES = """examples:
  lm-eval-hybrid rescore benchmark_results_*.json
  lm-eval-hybrid rescore out/my-model/samples_gsm8k_*.jsonl --out scores.jsonl
  lm-eval-hybrid rescore benchmark_results_*.json --judge judge.yaml

judge.yaml is a file such as this; without a key in the variable none is sent:
  kind: endpoint
  url: http://127.0.0.1:8000/v1
  model: any-model
  key_variable: OPENAI_API_KEY
"""


def add_arguments(parser: argparse.ArgumentParser, console: "Callable[[], Console]") -> None:
    """Declares the command's arguments; `console` makes what tables are shown on."""
    parser.set_defaults(console=console)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Reads each recorded answer and compares it with the true one, the same for all models."
    parser.epilog = EXAMPLES
    parser.add_argument(
        "files",
        metavar="FILE",
        type=Path,
        nargs="+",
        help="a JSON object with tasks (question, correct_answer, model_answers by model), or the harness's "
        "samples_*.jsonl of any model",
    )
    parser.add_argument(
        "--out", metavar="FILE.jsonl", type=Path, help="write a line per answer: what was read, whether right"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument(
        "--judge",
        metavar="FILE.yaml",
        type=Path,
        help="ask this model as well whether each answer is right, and show how far it agrees; its replies are kept in "
        "judge.jsonl beside the file",
    )
    parser.add_argument("--repeats", metavar="N", type=int, default=3, help="of the judge, an answer (default: 3)")


def run(args: argparse.Namespace) -> None:
    """Prints a table a file, and writes `args.out`."""
    from tqdm import tqdm

    from lm_eval_hybrid.common.files import write_file
    from lm_eval_hybrid.judging.verdicts import agreements
    from lm_eval_hybrid.report.terminal import agreement_table
    from lm_eval_hybrid.results import recordings
    from lm_eval_hybrid.results.recordings import scores

    if args.seed < 0:
        raise HybridError(f"--seed must be 0 or more; found {args.seed}; give another")
    if args.repeats < 1:
        raise HybridError(f"--repeats must be 1 or more; found {args.repeats}; give another")
    read = [recordings.read(path) for path in args.files]  # all that can be wrong is found before the long work begins
    judge, said = _judged(args, read) if args.judge else ("", [])
    console, lines = args.console(), []
    for place, recording in enumerate(read):
        total = sum(len(task.answers) for task in recording.tasks)
        hidden = None if total > LONG else True  # None: hidden where nobody looks
        found = list(tqdm(scores(recording), total=total, desc=recording.path.name, unit="answer", disable=hidden))
        console.print(table(recording, found))
        if (line := gap_line(recording, found, args.seed)) is not None:
            console.print(line)
        rows = [{"file": str(recording.path), **vars(score)} for score in found]
        if said:
            console.print(agreement_table(agreements(found, said[place]), judge))
            rows = [{**row, "judge": verdict.right} for row, verdict in zip(rows, said[place], strict=True)]
        lines += [json.dumps(row, ensure_ascii=False) for row in rows]
    if args.out:
        write_file(args.out, "".join(f"{line}\n" for line in lines).encode("utf-8", errors="replace"))


def _judged(args: argparse.Namespace, read: "Sequence[Recording]") -> "tuple[str, list[list[Verdict]]]":
    import logging

    from lm_eval_hybrid.judging import recipe
    from lm_eval_hybrid.judging.verdicts import judge_recordings

    # What it costs is said before anything is asked.
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return judge_recordings(read, recipe.read(args.judge), args.repeats, args.judge.parent)


def table(recording: "Recording", found: "Sequence[Score]") -> "RenderableType":
    """A row a model: accuracy with its interval, the recorded one, what was not finished and what has no answer."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from lm_eval_hybrid.results.statistics import accuracy

    shown = Table(
        title=Text(recording.path.name, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    shown.add_column("model", overflow="fold")
    for name in ("answers", "accuracy [95%]", "recorded", "difference", "unfinished", "no answer"):
        shown.add_column(name, justify="right")
    for model in recording.models:
        mine = [score for score in found if score.model == model]
        right = accuracy([float(score.right) for score in mine])
        judged = recording.judged.get(model)
        unfinished = sum(score.unfinished for score in mine)
        shown.add_row(
            Text(model),
            str(len(mine)),
            f"{right.value:.1%} [{100 * right.low:.1f}, {100 * right.high:.1f}]",
            ABSENT if judged is None else f"{judged:.1%}",
            ABSENT if judged is None else f"{100 * (right.value - judged):+.1f}",
            str(unfinished),
            str(sum(score.answer is None for score in mine) - unfinished),
        )
    return shown


def gap_line(recording: "Recording", found: "Sequence[Score]", seed: int) -> str | None:
    """The gap recovered on the tasks that base, hybrid and thinking all answered; None where there are none."""
    from lm_eval_hybrid.results.statistics import gap

    by_task: dict[int, dict[str, float]] = {}
    for score in found:
        by_task.setdefault(score.task, {})[score.model] = float(score.right)
    paired = [models for models in by_task.values() if {BASE, HYBRID, THINKING} <= models.keys()]
    if not paired:
        return None
    measured = gap(*([models[name] for models in paired] for name in (BASE, HYBRID, THINKING)), seed=seed)
    if measured.recovered is None:
        return f"gap recovered: undefined: {measured.reason}"
    interval = (
        measured.reason
        if measured.low is None or measured.high is None
        else f"[{100 * measured.low:+.1f}, {100 * measured.high:+.1f}]"
    )
    return f"gap recovered: {measured.recovered:+.1%} {interval}, {measured.documents} tasks"
