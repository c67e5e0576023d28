"""Documents of the tasks, from the hub, a folder of jsonl files or the package, and the examples of their prompts.

Most public functions are a task's `custom_dataset`: the harness calls them with the run's metadata (`--metadata`, and
the model's arguments) and the task's `dataset_kwargs` as keywords. `data_dir`, or else the environment variable
LM_EVAL_HYBRID_DATA, names a folder with a jsonl file for every benchmark. Without either, `datasets` loads from a
folder of the data set's name (such as openai/gsm8k) in the working directory, else from the hub or its cache. Column
names become lower case, and `answer` becomes text.

The `..._shots` are the examples of the stock tasks, read from the installed harness. They are not imported, because the
module with those of MATH needs one exact version of antlr4.

All raise HybridError where the data are missing or unsound.
"""

import ast
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_hybrid.common import jsonl, paths
from lm_eval_hybrid.common.errors import HybridError, show_plainly

if TYPE_CHECKING:
    from datasets import Dataset

DATA_VARIABLE = "LM_EVAL_HYBRID_DATA"
_GSM8K_SHOTS = "gsm8k/gsm8k-cot.yaml"
_MATH_SHOTS = "minerva_math/utils.py"


@dataclass(frozen=True)
class Benchmark:
    """Where to find the rows of a benchmark.

    Attributes:
        file: name of its file in a data folder.
        columns: the columns that every row must have.
        hub: name of the data set on the hub, its configuration, and its split.
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
    """The test split of GSM8K: `question`, `answer` (ends in `#### n`)."""
    return {"test": _read(GSM8K, data_dir)}


def math500(data_dir: str | None = None, **_: object) -> dict[str, "Dataset"]:
    """The test split of MATH500: `problem`, `answer`, and `solution`, `subject`, `level`, `unique_id`."""
    return {"test": _read(MATH500, data_dir)}


def aime24(data_dir: str | None = None, **_: object) -> dict[str, "Dataset"]:
    """The 30 problems of both AIME papers of 2024: `problem`, `answer` (a whole number from 0 to 999)."""
    return {"test": _read(AIME24, data_dir)}


def aime25(data_dir: str | None = None, **_: object) -> dict[str, "Dataset"]:
    """The 30 problems of both AIME papers of 2025, as `aime24`."""
    return {"test": _read(AIME25, data_dir)}


def gsm_plus(perturbation: str, data_dir: str | None = None, **_: object) -> dict[str, "Dataset"]:
    """The test rows of GSM-Plus with one kind of perturbation: `question`, `answer` (the number alone), `solution`."""
    rows = _read(GSM_PLUS, data_dir)
    kinds = rows["perturbation_type"]
    of_kind = [index for index, kind in enumerate(kinds) if kind == perturbation]
    if not of_kind:
        raise HybridError(
            f"found no rows of perturbation_type {perturbation!r} in GSM-Plus, only "
            f"{', '.join(sorted(set(kinds)))}; use the whole test split"
        )
    return {"test": rows.select(of_kind)}


def gsm8k_embedded(**_: object) -> dict[str, "Dataset"]:
    """The embedded pair's problems in the format of GSM8K."""
    return {"test": _rows(paths.embedded_dir() / "gsm8k_embedded.jsonl", GSM8K.columns)}


def math500_embedded(**_: object) -> dict[str, "Dataset"]:
    """The embedded pair's problems in the format of MATH500."""
    return {"test": _rows(paths.embedded_dir() / "math500_embedded.jsonl", MATH500.columns)}


def gsm8k_shots() -> list[dict[str, str]]:
    """The eight examples of Wei et al. 2022 (chain-of-thought prompting, arXiv 2201.11903): `question`, `target`."""
    import yaml

    try:
        return yaml.safe_load(_stock(_GSM8K_SHOTS))["fewshot_config"]["samples"]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise _absent(_GSM8K_SHOTS, error) from error


def math_shots() -> list[dict[str, str]]:
    """The four examples of Lewkowycz et al. 2022 (Minerva, arXiv 2206.14858): `problem`, `solution`."""
    try:
        body = ast.parse(_stock(_MATH_SHOTS)).body
        (listing,) = [
            node for node in body if isinstance(node, ast.FunctionDef) and node.name == "list_fewshot_samples"
        ]
        match listing.body[-1]:
            case ast.Return(value=ast.expr() as samples):
                return ast.literal_eval(samples)
        raise ValueError("no list returned")
    except (OSError, ValueError, SyntaxError) as error:
        raise _absent(_MATH_SHOTS, error) from error


def _stock(name: str) -> str:
    import lm_eval.tasks

    return (Path(lm_eval.tasks.__file__).parent / name).read_text(encoding="utf-8")


def _absent(name: str, error: Exception) -> HybridError:
    return HybridError(
        f"found no worked examples in the harness's tasks/{name} ({type(error).__name__}); install lm_eval 0.4.12 or "
        "0.4.13, or run the task without shots"
    )


def _read(benchmark: Benchmark, data_dir: str | None) -> "Dataset":
    show_plainly()  # with another model than ours, nothing else calls it
    folder = data_dir or os.environ.get(DATA_VARIABLE)
    if folder:
        return _rows(Path(folder).expanduser() / benchmark.file, benchmark.columns)
    from datasets import Value, load_dataset

    name, configuration, split = benchmark.hub
    try:
        rows = load_dataset(name, configuration, split=split)
    except (OSError, ValueError) as error:
        raise HybridError(
            f"cannot load data set {name} from the hub or the cache ({_first_line(error)}); go online, or put "
            f"{benchmark.file} in a folder and pass --metadata data_dir=FOLDER (or set {DATA_VARIABLE})"
        ) from error
    rows = rows.rename_columns({column: column.lower() for column in rows.column_names})
    return rows.cast_column("answer", Value("string"))


def _rows(path: Path, columns: tuple[str, ...]) -> "Dataset":
    from datasets import Dataset

    if not path.is_file():
        raise HybridError(
            f"found no {path.name} in {path.parent.resolve()}; put the task's documents there, or name the folder "
            f"that holds them (--metadata data_dir=FOLDER, or {DATA_VARIABLE})"
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
        raise HybridError(f"{path}: found no documents; replace the file")
    try:
        return Dataset.from_list(rows)
    except (TypeError, ValueError) as error:
        raise HybridError(
            f"{path}: a column has values of several types ({_first_line(error)}); fix the file"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
