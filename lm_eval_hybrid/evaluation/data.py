"""Documents of the tasks: from the hub, from a folder of jsonl files, or shipped with the package.

Each public function is a task's `custom_dataset`: the harness calls it with the run's metadata (`--metadata`, and the
model's arguments) as keywords, of which only `data_dir` matters here. `data_dir`, else the environment variable
LM_EVAL_HYBRID_DATA, names a folder that holds gsm8k_test.jsonl and math500_test.jsonl; a relative one is looked up from
the working directory. Without either the hub is asked, which takes a local folder openai/gsm8k or
HuggingFaceH4/MATH-500 of the working directory first, and what was downloaded before when offline.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid import paths
from lm_eval_hybrid.errors import HybridError, show_plainly

if TYPE_CHECKING:
    from datasets import Dataset

DATA_VARIABLE = "LM_EVAL_HYBRID_DATA"


def gsm8k(data_dir: str | None = None, **_: object) -> dict[str, "Dataset"]:
    """The test split of GSM8K: `question`, `answer` (ends in `#### n`).

    Raises:
        HybridError: no data where they were said to be, or none on the hub and none cached.
    """
    return _read("gsm8k_test.jsonl", ("question", "answer"), data_dir, hub=("openai/gsm8k", "main"))


def math500(data_dir: str | None = None, **_: object) -> dict[str, "Dataset"]:
    """The test split of MATH500: `problem`, `answer`, and `solution`, `subject`, `level`, `unique_id`.

    Raises:
        HybridError: no data where they were said to be, or none on the hub and none cached.
    """
    return _read("math500_test.jsonl", ("problem", "answer"), data_dir, hub=("HuggingFaceH4/MATH-500", None))


def gsm8k_embedded(**_: object) -> dict[str, "Dataset"]:
    """The embedded pair's problems in the format of GSM8K."""
    return {"test": _rows(paths.embedded_dir() / "gsm8k_embedded.jsonl", ("question", "answer"))}


def math500_embedded(**_: object) -> dict[str, "Dataset"]:
    """The embedded pair's problems in the format of MATH500."""
    return {"test": _rows(paths.embedded_dir() / "math500_embedded.jsonl", ("problem", "answer"))}


def _read(
    name: str, columns: tuple[str, ...], data_dir: str | None, hub: tuple[str, str | None]
) -> dict[str, "Dataset"]:
    show_plainly()  # any model can run these tasks, hence nobody else may have done so
    folder = data_dir or os.environ.get(DATA_VARIABLE)
    if folder:
        return {"test": _rows(Path(folder).expanduser() / name, columns)}
    from datasets import load_dataset

    try:
        return {"test": load_dataset(*hub, split="test")}
    except (OSError, ValueError) as error:
        raise HybridError(
            f"data set {hub[0]} must be on the hub or in the cache; {_first_line(error)}; go online, or put {name} "
            f"in a folder and pass --metadata data_dir=FOLDER (or set {DATA_VARIABLE})"
        ) from error


def _rows(path: Path, columns: tuple[str, ...]) -> "Dataset":
    from datasets import Dataset

    if not path.is_file():
        raise HybridError(
            f"documents are read from {path.name}; found no such file in {path.parent.resolve()}; put it there, or "
            f"name the folder that holds it (--metadata data_dir=FOLDER, or {DATA_VARIABLE})"
        )
    rows = []
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            missing = [column for column in columns if column not in row]
        except (json.JSONDecodeError, TypeError) as error:
            raise HybridError(f"{path} must hold one JSON object a line; line {place}: {error}; mend it") from error
        if missing:
            raise HybridError(f"{path} must have {', '.join(columns)}; line {place} lacks {', '.join(missing)}; add it")
        rows.append(row)
    if not rows:
        raise HybridError(f"{path} must hold at least one document; found none; put the real file there")
    return Dataset.from_list(rows)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
