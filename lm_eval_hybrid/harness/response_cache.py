"""The guard of the harness's response cache (`--use_cache`).

The cache knows an answer by its prompt alone. So that no run is given another policy's answers, the database is marked
with the identity of the run that filled it, and refused to any other.
"""

import json
from collections.abc import Iterator, MutableMapping
from typing import Any

from lm_eval_hybrid.common.errors import HybridError

KEY = "lm_eval_hybrid.identity"


def guard(answers: MutableMapping[str, Any], identity: dict[str, Any]) -> None:
    """Mark an empty cache with `identity` (JSON data); check that a filled one is marked with the same.

    Raises:
        HybridError: it was filled by another policy, bundle or pair, or by nobody knows whom.
    """
    mark = answers.get(KEY)
    if mark is None:
        if len(answers):
            raise HybridError(
                "a response cache must be of this bundle, pair and policy; found answers of an unknown model in it; "
                "give --use_cache another path, or delete the file"
            )
        answers[KEY] = json.dumps(identity, sort_keys=True)
        return
    then, now = dict(_flat(json.loads(mark))), dict(_flat(json.loads(json.dumps(identity))))
    differing = [name for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]
    if differing:
        found = "; ".join(f"{name} is {then.get(name)!r} there, {now.get(name)!r} here" for name in differing)
        raise HybridError(
            f"a response cache must be of this bundle, pair and policy; found that {found}; give --use_cache "
            "another path, or delete the file"
        )


def _flat(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
