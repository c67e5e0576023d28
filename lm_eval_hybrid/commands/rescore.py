"""`lm-eval-hybrid rescore`: recorded answers scored by our rule, beside recorded scores and a judge's verdicts."""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.commands.arguments import seed
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from lm_eval_hybrid.judging.verdicts import Verdict
    from lm_eval_hybrid.results.recordings import Recording

LONG = 200  # answers that are worth a progress bar
EXAMPLES = """\
examples:
  lm-eval-hybrid rescore benchmark_results_*.json
  lm-eval-hybrid rescore out/my-model/samples_gsm8k_*.jsonl --out scores.jsonl
  lm-eval-hybrid rescore benchmark_results_*.json --judge judge.yaml

judge.yaml is a file such as this. Without a key in the variable no key is sent:
  kind: endpoint
  url: http://127.0.0.1:8000/v1
  model: any-model
  key_variable: OPENAI_API_KEY
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = "Read each recorded answer and compare it with the true one, by the same rule for all models."
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
        "--out", metavar="FILE.jsonl", type=Path, help="write a line for each answer: as it was read, and whether right"
    )
    parser.add_argument("--seed", metavar="N", type=seed, default=0, help="seed of the bootstrap (default: 0)")
    parser.add_argument(
        "--judge",
        metavar="FILE.yaml",
        type=Path,
        help="also ask this model whether each answer is right, and show how far it agrees; its replies are kept in "
        "judge.jsonl beside the file",
    )
    parser.add_argument("--repeats", metavar="N", type=int, default=3, help="replies of the judge to each (default: 3)")


def run(args: argparse.Namespace) -> None:
    """Show a table for each file, and write `args.out`."""
    from tqdm import tqdm

    from lm_eval_hybrid.common.files import write_file
    from lm_eval_hybrid.judging.verdicts import agreements
    from lm_eval_hybrid.report import cells, terminal
    from lm_eval_hybrid.results import recordings

    if args.repeats < 1:
        raise HybridError(f"--repeats is {args.repeats}; must be 1 or more")
    files = [recordings.read(path) for path in args.files]  # mistakes are found before the long work begins
    judge, verdicts = _judged(args, files) if args.judge else ("", [])
    console, lines = args.console(), []
    for number, recording in enumerate(files):
        total = sum(len(task.answers) for task in recording.tasks)
        hidden = None if total > LONG else True  # None hides the bar if stderr is no terminal
        answers = recordings.scores(recording)
        scores = list(tqdm(answers, total=total, desc=recording.path.name, unit="answer", disable=hidden))
        console.print(terminal.recording_table(recording, scores))
        if (gap := recordings.recorded_gap(scores, args.seed)) is not None:
            console.print(f"gap recovered: {cells.recovered(gap)}, {gap.documents} tasks", markup=False)
        rows = [{"file": str(recording.path), **vars(score)} for score in scores]
        if verdicts:
            console.print(terminal.agreement_table(agreements(scores, verdicts[number]), judge))
            rows = [{**row, "judge": verdict.right} for row, verdict in zip(rows, verdicts[number], strict=True)]
        lines += [json.dumps(row, ensure_ascii=False) for row in rows]
    if args.out:
        write_file(args.out, "".join(f"{line}\n" for line in lines).encode("utf-8", errors="replace"))


def _judged(args: argparse.Namespace, files: "Sequence[Recording]") -> "tuple[str, list[list[Verdict]]]":
    from lm_eval_hybrid.judging import recipe
    from lm_eval_hybrid.judging.verdicts import judge_recordings

    logging.basicConfig(level=logging.INFO, format="%(message)s")  # shows the cost before the judge is asked
    return judge_recordings(files, recipe.read(args.judge), args.repeats, args.judge.parent)
