"""Load YAML from strangers: plain data, bounded in size and depth, without aliases, tags or duplicate keys."""

from collections.abc import Callable
from typing import Any

import yaml

from lm_eval_hybrid.common.errors import HybridError

MAX_BYTES = 1 << 20  # a manifest of fifteen behaviors with examples takes a thirtieth
_MAX_DEPTH = 16
_MAX_NODES = 1 << 15  # a manifest of fifteen behaviors takes a hundredth
_MAX_DIGITS = 40

# libyaml's parser where pyyaml has it: many times faster, which matters when a hundred bundles are listed.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE = "tag:yaml.org,2002:"


def load(data: bytes, what: str, advice: str) -> dict[str, Any]:
    """The mapping in YAML bytes.

    Args:
        what: the file, for errors: `<path>: the manifest`.
        advice: what to do about an error.

    Raises HybridError (one line, from `what` to `advice`) if the bytes are anything but a plain, bounded mapping.
    """
    if len(data) > MAX_BYTES:
        raise HybridError(f"{what} has {len(data):,} bytes; at most {MAX_BYTES:,} are allowed; {advice}")
    try:
        fields = _Reader(data).value()
    except (yaml.YAMLError, _NotPlain, ValueError, RecursionError, OverflowError) as error:
        raise HybridError(f"{what} is not plain YAML: {' '.join(str(error).split())}; {advice}") from None
    if not isinstance(fields, dict):
        raise HybridError(f"{what} is of type {type(fields).__name__}; it must be a mapping; {advice}")
    return fields


class _NotPlain(Exception):
    """Valid YAML that is not plain data."""


class _Reader:
    """Builds one document's value from its nodes, each of which may be used once: an alias repeats a node."""

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
            raise _NotPlain(f"more than {_MAX_DEPTH} levels in {_line(node)}")
        if id(node) in self._seen:
            raise _NotPlain(f"an alias of a value in {_line(node)}")
        self._seen.add(id(node))
        if len(self._seen) > _MAX_NODES:
            raise _NotPlain(f"more than {_MAX_NODES:,} values")
        kind = node.tag.removeprefix(_CORE)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, depth)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self._build(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.ScalarNode) and kind in self._scalars:
            return self._scalars[kind](node)
        # YAML reads anything that looks like a date as one.
        found = "a date without quotes" if kind == "timestamp" else f"the tag {node.tag}"
        raise _NotPlain(f"{found} in {_line(node)}")

    def _number(self, node: yaml.ScalarNode) -> int | float:
        # YAML also reads base 60, where a long number takes minutes, and base 16, where it cannot be printed.
        if len(node.value) > _MAX_DIGITS or ":" in node.value:
            raise _NotPlain(f"a number of {len(node.value):,} characters, or with colons, in {_line(node)}")
        whole = node.tag.endswith(":int")
        return self._loader.construct_yaml_int(node) if whole else self._loader.construct_yaml_float(node)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode) or name.tag != f"{_CORE}str":
                raise _NotPlain(f"a key that is not text in {_line(name)}")
            if name.value in fields:
                raise _NotPlain(f"duplicate key {name.value!r} in {_line(name)}")
            fields[name.value] = self._build(value, depth + 1)
        return fields


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"
