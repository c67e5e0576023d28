"""YAML from strangers: plain data only, small and shallow, no anchors or tags, every key once."""

from collections.abc import Iterator
from typing import Any

import yaml

from lm_eval_hybrid.errors import HybridError

MAX_BYTES = 1 << 20  # fifteen behaviors with their sentences take a thirtieth of it
_MAX_DEPTH = 16

# libyaml's parser, where pyyaml has it: ten times as fast, which a list of a hundred bundles needs.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(_Loader):  # type: ignore[misc, valid-type]
    """A safe loader that refuses a key given twice, of which YAML loaders take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "a key that is no plain scalar", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(data: bytes, what: str, advice: str) -> dict[str, Any]:
    """The mapping in YAML bytes.

    Raises:
        HybridError: one line that begins with `what` and ends in `advice`, where there is no such mapping.
    """
    if len(data) > MAX_BYTES:
        raise HybridError(f"{what} must have at most {MAX_BYTES:,} bytes; found {len(data):,}; {advice}")
    try:
        # Before anything is built from it: what a few bytes can unfold into has no bound.
        problem = next(_problems(data), None)
        fields = yaml.load(data, Loader=_StrictLoader) if problem is None else None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        problem = " ".join(str(error).split())
    if problem is not None:
        raise HybridError(f"{what} must be plain YAML; found {problem}; {advice}")
    if not isinstance(fields, dict):
        raise HybridError(f"{what} must be a mapping; found {type(fields).__name__}; {advice}")
    return fields


def _problems(data: bytes) -> Iterator[str]:
    depth = 0
    for event in yaml.parse(data, Loader=_Loader):
        where = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            yield f"an anchor or alias in {where}"
        if getattr(event, "tag", None) is not None:
            yield f"the tag {event.tag} in {where}"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            yield f"more than {_MAX_DEPTH} levels in {where}"
