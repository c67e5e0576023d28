"""Problems for traces and for calibration: where they are from, and how they are put to the models."""

import json
import random
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice, zip_longest
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lm_eval_hybrid.bundles.manifest import Words
from lm_eval_hybrid.common import jsonl
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.scoring.reader.answers import marked_answer

EMBEDDED = "embedded"
_FILES = (".jsonl", ".json")
_TESTED = {"openai/gsm8k", "gsm8k", "huggingfaceh4/math-500"}
_TESTS = {"test", "all"}  # `all` joins every split


@dataclass(frozen=True)
class Problem:
    """A prompt, and its right answer where that is known.

    Attributes:
        numeric: whether an answer needs no more than the same number, as where worked solutions end in `####`: the
            tasks score such answers so.
        question: what the prompt asks, where that is known apart from it: answers that repeat it are read with it.
    """

    prompt: str
    answer: str | None = None
    numeric: bool = False
    question: str | None = None


class Source(BaseModel):
    """Where problems are from.

    Attributes:
        data: a data set of the hub, a jsonl file, or `embedded`: seeded problems of the embedded pair.
        config, split: of a data set of the hub.
        question, answer: names of the fields; without `answer` the problems are for traces only. An answer may be a
            worked solution that ends in `####` or a box.
        prompt: what a model reads, with `{question}` in it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Words
    config: str | None = None
    split: Words = "train"
    question: Words = "question"
    answer: str | None = "answer"
    prompt: Annotated[str, Field(max_length=10_000)] = "Question: {question}\nAnswer:"

    @model_validator(mode="after")
    def _check(self) -> "Source":
        if "{question}" not in self.prompt:
            raise ValueError(f"prompt must hold {{question}}; found {self.prompt!r:.60}")
        # `train[:10]+test[:5]` joins parts of splits.
        splits = {part.partition("[")[0].strip() for part in self.split.split("+")}
        if self.data.lower() in _TESTED and splits & _TESTS:
            raise ValueError(f"problems must not be those of a test; found {self.data}, split {self.split}; use train")
        return self

    def content(self) -> dict[str, Any]:
        """What decides the problems, as JSON can hold it: of a file what is in it, wherever it is.

        Raises:
            HybridError: where a file cannot be read.
        """
        fields = self.model_dump()
        if self.data.endswith(_FILES):
            try:
                fields["data"] = sha256(Path(self.data).read_bytes()).hexdigest()
            except OSError as error:
                raise HybridError(
                    f"{self.data}: problems must be a readable jsonl file; found {error.strerror}; name another"
                ) from None
        return fields


def draw(sources: Sequence[Source], count: int, seed: int, without: Container[str] = ()) -> list[Problem]:
    """`count` different problems, in turns from each source, shuffled by `seed` within it.

    The first n of them are the same whatever `count` is. What is fewer in a source is made up for by the others.

    Args:
        without: prompts that are none of them.

    Raises:
        HybridError: where a source cannot be read, or all have fewer.
    """
    if not count:
        return []
    streams = [_shuffled(source, seed) for source in sources]
    turns = (problem for turn in zip_longest(*streams) for problem in turn if problem is not None)
    found = list(islice((problem for problem in _distinct(turns) if problem.prompt not in without), count))
    if len(found) < count:
        raise HybridError(
            f"problems: {count} different ones are needed for traces and calibration; found {len(found)}; lower "
            "traces.count or calibration.problems, or add a source"
        )
    return found


def _distinct(problems: Iterator[Problem]) -> Iterator[Problem]:
    seen = set()
    for problem in problems:
        if problem.prompt not in seen:
            seen.add(problem.prompt)
            yield problem


def _shuffled(source: Source, seed: int) -> Iterator[Problem]:
    if source.data == EMBEDDED:
        from lm_eval_hybrid.embedded.corpus import prompt, unseen

        return (Problem(prompt(p), str(p.answer), question=p.text) for p in unseen(random.Random(f"discover:{seed}")))
    rows = _file(Path(source.data)) if source.data.endswith(_FILES) else _hub(source)
    problems = [_problem(source, where, row) for where, row in rows]
    random.Random(seed).shuffle(problems)
    return iter(problems)


def _file(path: Path) -> Iterator[tuple[str, Any]]:
    return ((f"{path}:{number}", row) for number, row in jsonl.rows(path))


def _hub(source: Source) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(source.data, source.config, split=source.split)
    except (OSError, ValueError, DatasetsError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise HybridError(
            f"problems: {source.data} must be a data set on the hub or in the cache; {first}; go online, or name a "
            "jsonl file"
        ) from None
    return ((f"{source.data}, row {number}", row) for number, row in enumerate(rows))


def _problem(source: Source, where: str, row: Any) -> Problem:
    wanted = [name for name in (source.question, source.answer) if name is not None]
    texts = [row.get(name) if isinstance(row, dict) else None for name in wanted]
    if not all(_is_text(text) for text in texts):
        raise HybridError(
            f"{where}: a problem must have {' and '.join(wanted)}; found {json.dumps(row, default=str)[:80]}; mend "
            "it, or name its fields in the recipe"
        )
    question = str(texts[0])
    prompt = source.prompt.replace("{question}", question)
    if source.answer is None:
        return Problem(prompt, question=question)
    solution = str(texts[1])
    numeric = "####" in solution and "\\boxed" not in solution
    return Problem(prompt, marked_answer(solution) or solution, numeric, question)


def _is_text(value: Any) -> bool:
    """Whether it says something, in characters that any tokenizer reads: JSON can hold half of a surrogate pair."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return False
    text = str(value)
    return bool(text.strip()) and text == text.encode(errors="replace").decode()
