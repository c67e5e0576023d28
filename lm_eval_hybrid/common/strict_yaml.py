"""YAML from strangers: plain data only, small and shallow, no aliases or tags, every key once."""

from collections.abc import Callable
from typing import Any

import yaml

from lm_eval_hybrid.common.errors import HybridError

MAX_BYTES = 1 << 20  # fifteen behaviors with their sentences take a thirtieth of it
_MAX_DEPTH = 16
_MAX_NODES = 1 << 15  # fifteen behaviors take a hundredth of it
_MAX_DIGITS = 40

# libyaml's parser, where pyyaml has it: many times as fast, which a list of a hundred bundles needs.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE = "tag:yaml.org,2002:"


def load(data: bytes, what: str, advice: str) -> dict[str, Any]:
    """The mapping in YAML bytes.

    Raises:
        HybridError: one line that begins with `what` and ends in `advice`, where there is no such mapping.
    """
    if len(data) > MAX_BYTES:
        raise HybridError(f"{what} must have at most {MAX_BYTES:,} bytes; found {len(data):,}; {advice}")
    try:
        fields = _Reader(data).value()
    except (yaml.YAMLError, _Refused, ValueError, RecursionError, OverflowError) as error:
        raise HybridError(f"{what} must be plain YAML; found {' '.join(str(error).split())}; {advice}") from None
    if not isinstance(fields, dict):
        raise HybridError(f"{what} must be a mapping; found {type(fields).__name__}; {advice}")
    return fields


class _Refused(Exception):
    """What is YAML, but not plain."""


class _Reader:
    """Builds values from one document's nodes, which take no more room than its bytes: an alias is the same node."""

    def __init__(self, data: bytes) -> None:
        self._loader = _Loader(data)
        self._seen: set[int] = set()
        self._scalars: dict[str, Callable[[yaml.ScalarNode], Any]] = {
            "str": lambda node: node.value,
            "int": self._number,
            "float": self._number,
            "bool": self._loader.construct_yaml_bool,
            "null": lambda node: None,
        }

    def value(self) -> Any:
        try:
            root = self._loader.get_single_node()
            return None if root is None else self._build(root, 1)
        finally:
            self._loader.dispose()

    def _build(self, node: yaml.Node, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise _Refused(f"more than {_MAX_DEPTH} levels in {_line(node)}")
        if id(node) in self._seen:
            raise _Refused(f"an alias of what is in {_line(node)}")
        self._seen.add(id(node))
        if len(self._seen) > _MAX_NODES:
            raise _Refused(f"more than {_MAX_NODES:,} values")
        kind = node.tag.removeprefix(_CORE)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, depth)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self._build(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.ScalarNode) and kind in self._scalars:
            return self._scalars[kind](node)
        # Whatever looks like a date is one to YAML.
        found = "a date, which must be in quotes," if kind == "timestamp" else f"the tag {node.tag}"
        raise _Refused(f"{found} in {_line(node)}")

    def _number(self, node: yaml.ScalarNode) -> int | float:
        # In base 60, which YAML reads as well, a long one takes minutes; in base 16 it cannot be shown.
        if len(node.value) > _MAX_DIGITS or ":" in node.value:
            raise _Refused(f"a number of {len(node.value):,} characters, or with colons, in {_line(node)}")
        whole = node.tag.endswith(":int")
        return self._loader.construct_yaml_int(node) if whole else self._loader.construct_yaml_float(node)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode) or name.tag != f"{_CORE}str":
                raise _Refused(f"a key that is no text in {_line(name)}")
            if name.value in fields:
                raise _Refused(f"key {name.value!r} twice, again in {_line(name)}")
            fields[name.value] = self._build(value, depth + 1)
        return fields


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"
