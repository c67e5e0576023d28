"""The worked examples of the tasks with few shots: those of the stock tasks, read from the installed harness.

Read, not imported: the module that holds the ones of MATH cannot be imported without one exact version of antlr4, which
nothing here needs.
"""

import ast
from pathlib import Path

from lm_eval_hybrid.common.errors import HybridError

_GSM8K = "gsm8k/gsm8k-cot.yaml"
_MATH = "minerva_math/utils.py"


def gsm8k() -> list[dict[str, str]]:
    """The eight of Wei et al. 2022 (chain-of-thought prompting, arXiv 2201.11903): `question`, `target`.

    Raises:
        HybridError: the harness has none where it used to.
    """
    import yaml

    try:
        return yaml.safe_load(_stock(_GSM8K))["fewshot_config"]["samples"]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise _absent(_GSM8K, error) from error


def math() -> list[dict[str, str]]:
    """The four of Lewkowycz et al. 2022 (Minerva, arXiv 2206.14858): `problem`, `solution`.

    Raises:
        HybridError: the harness has none where it used to.
    """
    try:
        (listed,) = [
            node
            for node in ast.parse(_stock(_MATH)).body
            if isinstance(node, ast.FunctionDef) and node.name == "list_fewshot_samples"
        ]
        returned = listed.body[-1]
        return ast.literal_eval(returned.value)  # type: ignore[attr-defined]
    except (OSError, ValueError, SyntaxError, AttributeError) as error:
        raise _absent(_MATH, error) from error


def _stock(name: str) -> str:
    import lm_eval.tasks

    return (Path(lm_eval.tasks.__file__).parent / name).read_text(encoding="utf-8")


def _absent(name: str, error: Exception) -> HybridError:
    return HybridError(
        f"worked examples are read from the harness's tasks/{name}; {type(error).__name__} there; install lm_eval "
        "0.4.12 or 0.4.13, or run the task without shots"
    )
