"""Problems for traces and for calibration: where they come from, and the prompt that a model gets."""

import json
import random
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lm_eval_hybrid.bundles.manifest import Words
from lm_eval_hybrid.common import jsonl
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.scoring.reader.reading import marked_answer

_EMBEDDED = "embedded"
_FILES = (".jsonl", ".json")
_BENCHMARKS = {"openai/gsm8k", "gsm8k", "huggingfaceh4/math-500"}
_TEST_SPLITS = {"test", "all"}  # `all` joins every split


@dataclass(frozen=True)
class PromptedProblem:
    """A problem as a prompt, with its correct answer if that is known.

    Attributes:
    return PromptedProblem(prompt, marked_answer(solution) or solution, question)
    """

    prompt: str
    answer: str | None = None
    question: str | None = None


class ProblemSource(BaseModel):
    """Where problems come from, as a recipe names it.

    Attributes:
        data: a data set on the hub, a jsonl file, or `embedded`: seeded problems of the embedded pair.
        config, split: of a data set on the hub.
        question, answer: field names; without `answer` the problems serve for traces only. An answer may be a worked
            solution that ends in `####` or a box.
        prompt: the prompt's template, which contains `{question}`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Words
    config: str | None = None
    split: Words = "train"
    question: Words = "question"
    answer: str | None = "answer"
    prompt: Annotated[str, Field(max_length=10_000)] = "Question: {question}\nAnswer:"

    @model_validator(mode="after")
    def _check(self) -> "ProblemSource":
        if "{question}" not in self.prompt:
            raise ValueError(f"prompt must hold {{question}}; found {self.prompt!r:.60}")
        # `train[:10]+test[:5]` joins parts of splits.
        splits = {part.partition("[")[0].strip() for part in self.split.split("+")}
        if self.data.lower() in _BENCHMARKS and splits & _TEST_SPLITS:
            raise ValueError(f"problems must not be those of a test; found {self.data}, split {self.split}; use train")
        return self

    def content(self) -> dict[str, Any]:
        """What determines the problems, as plain data: for a file its digest, not its path.

        Raises:
            HybridError: a file cannot be read.
        """
        fields = self.model_dump()
        if self.data.endswith(_FILES):
            try:
                fields["data"] = sha256(Path(self.data).read_bytes()).hexdigest()
            except OSError as error:
                raise HybridError(
                    f"{self.data}: cannot be read ({error.strerror}); name a readable jsonl file"
                ) from None
        return fields


def draw(
    sources: Sequence[ProblemSource], count: int, seed: int, without: Container[str] = ()
) -> list[PromptedProblem]:
    """Draw `count` different problems: from the sources in turn, each shuffled with `seed`.

    The first n problems are the same for any `count`. The other sources make up for one that has too few.

    Args:
        without: prompts to leave out.

    Raises:
        HybridError: a source cannot be read, or all together have too few.
    """
    if not count:
        return []
    streams = [_shuffled(source, seed) for source in sources]
    drawn: dict[str, PromptedProblem] = {}
    for problem in (problem for turn in zip_longest(*streams) for problem in turn if problem is not None):
        if problem.prompt not in without:
            drawn.setdefault(problem.prompt, problem)
        if len(drawn) == count:
            return list(drawn.values())
    raise HybridError(
        f"the sources have {len(drawn)} different problems; traces and calibration need {count}; lower traces.count or "
        "calibration.problems, or add a source"
    )


def _shuffled(source: ProblemSource, seed: int) -> Iterator[PromptedProblem]:
    if source.data == _EMBEDDED:
        from lm_eval_hybrid.embedded.corpus import prompt, unseen

        stream = unseen(random.Random(f"discover:{seed}"))
        return (PromptedProblem(prompt(problem), str(problem.answer), question=problem.text) for problem in stream)
    if source.data.endswith(_FILES):
        problems = [_problem(source, f"{source.data}:{line}", row) for line, row in jsonl.rows(Path(source.data))]
    else:
        problems = [_problem(source, f"{source.data}, row {i}", row) for i, row in enumerate(_hub_rows(source))]
    random.Random(seed).shuffle(problems)
    return iter(problems)


def _hub_rows(source: ProblemSource) -> Iterable[Any]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return load_dataset(source.data, source.config, split=source.split)
    except (OSError, ValueError, DatasetsError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise HybridError(
            f"{source.data} cannot be loaded from the hub or its cache ({first}); go online, or name a jsonl file"
        ) from None


def _problem(source: ProblemSource, where: str, row: Any) -> PromptedProblem:
    names = [name for name in (source.question, source.answer) if name is not None]
    texts = [row.get(name) if isinstance(row, dict) else None for name in names]
    if not all(_is_text(text) for text in texts):
        raise HybridError(
            f"{where}: found {json.dumps(row, default=str)[:80]}; a problem must have {' and '.join(names)}; fix the "
            "row, or name its fields in the recipe"
        )
    question = str(texts[0])
    prompt = source.prompt.replace("{question}", question)
    if source.answer is None:
        return PromptedProblem(prompt, question=question)
    solution = str(texts[1])
    return PromptedProblem(prompt, marked_answer(solution) or solution, question)


def _is_text(value: Any) -> bool:
    """Whether a value is text that any tokenizer can read, or a number: JSON can contain half of a surrogate pair."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return False
    text = str(value)
    return bool(text.strip()) and text == text.encode(errors="replace").decode()
