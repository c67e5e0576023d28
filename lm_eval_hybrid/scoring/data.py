"""Documents of the tasks: from the hub, from a folder of jsonl files, or shipped with the package.

Each public function is a task's `custom_dataset`: the harness calls it with the run's metadata (`--metadata`, and the
model's arguments) and the task's `dataset_kwargs` as keywords, of which only those it names matter here. `data_dir`,
else the environment variable LM_EVAL_HYBRID_DATA, names a folder that holds a jsonl file for every benchmark run; a
relative one is looked up from the working directory. Without either the hub is asked, which takes a folder of the data
set's name (such as openai/gsm8k) in the working directory first, and what was downloaded before when offline.

Columns are named in lower case, whatever the source writes, and `answer` is text.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.common import jsonl, paths
from lm_eval_hybrid.common.errors import HybridError, show_plainly

if TYPE_CHECKING:
    from datasets import Dataset

DATA_VARIABLE = "LM_EVAL_HYBRID_DATA"


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark's rows are.

    Attributes:
        file: its name in a data folder.
        columns: those that every row must have.
        hub: name of the data set, of its configuration, and of its split there.
    """

    file: str
    columns: tuple[str, ...]
    hub: tuple[str, str | None, str]


GSM8K = Benchmark("gsm8k_test.jsonl", ("question", "answer"), ("openai/gsm8k", "main", "test"))
MATH500 = Benchmark("math500_test.jsonl", ("problem", "answer"), ("HuggingFaceH4/MATH-500", None, "test"))
AIME24 = Benchmark("aime24_test.jsonl", ("problem", "answer"), ("Maxwell-Jia/AIME_2024", None, "train"))
AIME25 = Benchmark("aime25_test.jsonl", ("problem", "answer"), ("math-ai/aime25", None, "test"))
GSM_PLUS = Benchmark(
    "gsm_plus_test.jsonl", ("question", "answer", "perturbation_type"), ("qintongli/GSM-Plus", None, "test")
)


def gsm8k(data_dir: str | None = None, **_: object) -> dict[str, "Dataset"]:
    """The test split of GSM8K: `question`, `answer` (ends in `#### n`).

    Raises:
        HybridError: no data where they were said to be, or none on the hub and none cached.
    """
    return {"test": _read(GSM8K, data_dir)}


def math500(data_dir: str | None = None, **_: object) -> dict[str, "Dataset"]:
    """The test split of MATH500: `problem`, `answer`, and `solution`, `subject`, `level`, `unique_id`.

    Raises:
        HybridError: as `gsm8k`.
    """
    return {"test": _read(MATH500, data_dir)}


def aime24(data_dir: str | None = None, **_: object) -> dict[str, "Dataset"]:
    """The 30 problems of both AIME papers of 2024: `problem`, `answer` (a whole number from 0 to 999).

    Raises:
        HybridError: as `gsm8k`.
    """
    return {"test": _read(AIME24, data_dir)}


def aime25(data_dir: str | None = None, **_: object) -> dict[str, "Dataset"]:
    """The 30 problems of both AIME papers of 2025, as `aime24`.

    Raises:
        HybridError: as `gsm8k`.
    """
    return {"test": _read(AIME25, data_dir)}


def gsm_plus(perturbation: str, data_dir: str | None = None, **_: object) -> dict[str, "Dataset"]:
    """The test rows of GSM-Plus of one kind of perturbation: `question`, `answer` (the number alone), `solution`.

    Raises:
        HybridError: as `gsm8k`; no row of this kind.
    """
    rows = _read(GSM_PLUS, data_dir)
    kinds = rows["perturbation_type"]
    of_kind = [place for place, kind in enumerate(kinds) if kind == perturbation]
    if not of_kind:
        raise HybridError(
            f"GSM-Plus must have rows of perturbation_type {perturbation!r}; found {', '.join(sorted(set(kinds)))}; "
            "use the whole test split"
        )
    return {"test": rows.select(of_kind)}


def gsm8k_embedded(**_: object) -> dict[str, "Dataset"]:
    """The embedded pair's problems in the format of GSM8K."""
    return {"test": _rows(paths.embedded_dir() / "gsm8k_embedded.jsonl", GSM8K.columns)}


def math500_embedded(**_: object) -> dict[str, "Dataset"]:
    """The embedded pair's problems in the format of MATH500."""
    return {"test": _rows(paths.embedded_dir() / "math500_embedded.jsonl", MATH500.columns)}


def _read(benchmark: Benchmark, data_dir: str | None) -> "Dataset":
    show_plainly()  # any model can run these tasks, hence nobody else may have done so
    folder = data_dir or os.environ.get(DATA_VARIABLE)
    if folder:
        return _rows(Path(folder).expanduser() / benchmark.file, benchmark.columns)
    from datasets import Value, load_dataset

    name, configuration, split = benchmark.hub
    try:
        rows = load_dataset(name, configuration, split=split)
    except (OSError, ValueError) as error:
        raise HybridError(
            f"data set {name} must be on the hub or in the cache; {_first_line(error)}; go online, or put "
            f"{benchmark.file} in a folder and pass --metadata data_dir=FOLDER (or set {DATA_VARIABLE})"
        ) from error
    rows = rows.rename_columns({column: column.lower() for column in rows.column_names})
    return rows.cast_column("answer", Value("string"))


def _rows(path: Path, columns: tuple[str, ...]) -> "Dataset":
    from datasets import Dataset

    if not path.is_file():
        raise HybridError(
            f"documents are read from {path.name}; found no such file in {path.parent.resolve()}; put it there, or "
            f"name the folder that holds it (--metadata data_dir=FOLDER, or {DATA_VARIABLE})"
        )
    rows = []
    for number, value in jsonl.rows(path):
        if not isinstance(value, dict):
            raise HybridError(f"{path}:{number}: found {type(value).__name__}, not an object; fix or delete the line")
        row = {name.lower(): content for name, content in value.items()}
        missing = [column for column in columns if row.get(column) is None]
        if missing:
            raise HybridError(f"{path}:{number}: lacks {', '.join(missing)}; must have {', '.join(columns)}; add it")
        rows.append(row | {"answer": str(row["answer"])})
    if not rows:
        raise HybridError(f"{path} must hold at least one document; found none; put the real file there")
    try:
        return Dataset.from_list(rows)
    except (TypeError, ValueError) as error:
        raise HybridError(
            f"{path} must have values of one type in a column; {_first_line(error)}; mend the file"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
