"""How long answers were, and how fast, where something was measured: in a former run's folder, or just now.

With a batch, time is not linear in documents: a step takes all rows one token on, so the last answers, made with few
beside them, cost more. Hence time is counted as so much a document (its prompt is read), a step, and a row of a step;
the three are found from when each answer was finished.
"""

import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
from scipy.optimize import nnls

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.results.runs import WITHOUT, token_lines

_AUTO = 64  # answers at once, at most, where the harness is told `auto`


@dataclass(frozen=True)
class Work:
    """What answering takes, in counts.

    Attributes:
        documents: answers begun.
        steps: tokens that the batch goes on, one after the other.
        tokens: of all answers together.
    """

    documents: int
    steps: int
    tokens: int


@dataclass(frozen=True)
class Rate:
    """Seconds that a document, a step, and a row's token in a step take.

    Attributes:
        requests: by remote model, requests to its server for each step.
        slots: answers at once when it was measured.
    """

    document: float
    step: float
    token: float
    requests: Mapping[str, float]
    slots: int

    def seconds(self, work: Work) -> float:
        """That so much work takes."""
        return self.document * work.documents + self.step * work.steps + self.token * work.tokens


@dataclass(frozen=True)
class Measured:
    """What is known of arms.

    Attributes:
        lengths: by arm and task, tokens of answers, those of the longest prompts first.
        rates: by arm.
        origin: in words, what was measured.
    """

    lengths: Mapping[tuple[str, str], tuple[int, ...]]
    rates: Mapping[str, Rate]
    origin: str


NOTHING = Measured({}, {}, "nothing")


def progress(lengths: Sequence[int], slots: int) -> Iterator[Work]:
    """The work done whenever an answer ends; answers of these lengths are begun in this order, `slots` at once."""
    going = list(lengths[:slots])
    heapq.heapify(going)
    waiting = iter(lengths[slots:])
    begun, now, done = len(going), 0, 0
    while going:
        end = heapq.heappop(going)
        done += (len(going) + 1) * (end - now)
        now = end
        yield Work(begun, now, done)
        for length in islice(waiting, 1):
            begun += 1
            heapq.heappush(going, now + length)


def work(lengths: Sequence[int], slots: int) -> Work:
    """All of it."""
    done = Work(0, 0, 0)
    for done in progress(lengths, slots):  # noqa: B007 the last one counts
        pass
    return done


def fitted(lengths: Sequence[int], slots: int, ends: Sequence[float], requests: Mapping[str, int]) -> Rate:
    """The rate at which answers of these lengths, begun in this order, were finished `ends` seconds after the start."""
    done = list(progress(lengths, slots))
    counts = numpy.array([(each.documents, each.steps, each.tokens) for each in done], dtype=float)
    document, step, token = map(float, nnls(counts, numpy.array(sorted(ends)))[0])
    # The whole time is what is to be foretold: the parts are made to add up to it.
    rate = Rate(document, step, token, {}, slots)
    scale = max(ends) / (rate.seconds(done[-1]) or 1.0)
    per_step = {name: count / max(1, done[-1].steps) for name, count in requests.items()}
    return Rate(document * scale, step * scale, token * scale, per_step, slots)


def read(folder: Path) -> Measured:
    """What former runs left in `folder`: of each arm the newest counts.

    All that is known of a run's time is the sum. It is counted by step: right at the same batch size, whatever the
    number of documents.

    Raises:
        HybridError: there are no results of model `hybrid`.
    """
    lengths: dict[tuple[str, str], tuple[int, ...]] = {}
    rates: dict[str, Rate] = {}
    for path in sorted(folder.rglob("results_*.json"), key=lambda path: path.name):
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            config, totals = results["config"], results["config"]["hybrid_totals"]
            arm, tasks, left_out = config["hybrid_arm"], list(results["configs"]), config.get("hybrid_without")
        except (ValueError, KeyError, TypeError):
            continue  # another model's
        arm = f"{WITHOUT}{', '.join(left_out)}" if arm == "hybrid" and left_out else arm
        if not totals["requests"]:
            continue
        found = {task: _lengths(path, task) or _mean(totals) for task in tasks}
        lengths |= {(arm, task): counts for task, counts in found.items()}
        everything = sorted((count for counts in found.values() for count in counts), reverse=True)
        asked = str(config.get("batch_size") or 1)
        slots = _AUTO if asked.startswith("auto") else int(asked)
        steps = max(1, work(everything, slots).steps * totals["requests"] // len(everything))
        requests = {
            name: traffic["requests"] / steps for name, traffic in (config.get("hybrid_requests") or {}).items()
        }
        if totals["seconds"]:
            rates[arm] = Rate(0.0, totals["seconds"] / steps, 0.0, requests, slots)
    if not lengths:
        raise HybridError(
            f"--from needs results of model hybrid (results_*.json); found none in {folder}; name the --out of a run"
        )
    return Measured(lengths, rates, f"{folder}")


def _lengths(results: Path, task: str) -> tuple[int, ...]:
    """Tokens of the answers in a tokens file, if the run left one."""
    path = results.with_name(results.name.replace("results_", f"tokens_{task}_", 1)).with_suffix(".jsonl")
    if not path.is_file():
        return ()
    by_prompt = token_lines(path, lambda line: (len(line["prompt"]), len(line["records"])))
    return tuple(count for _, count in sorted(by_prompt, key=lambda pair: -pair[0]))


def _mean(totals: Mapping[str, Any]) -> tuple[int, ...]:
    return (round(totals["tokens"] / totals["requests"]),)
