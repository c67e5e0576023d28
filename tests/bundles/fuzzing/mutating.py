"""Odd values, mutated trees of plain data, and damaged bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
Of = TypeVar("Of")


@dataclass(frozen=True)
class Raw:
    """Text that goes into YAML or JSON verbatim."""

    text: str


SPELLINGS = ["", " ", "a\nb", "\x1b[2J\x07", "\x00", "\u202eabc", "\u2028", "\ud800", "a" * 20_000, "..", "../../kept"]
SPELLINGS += ["/etc/passwd", "C:\\a", "~", "{{ 7 * 7 }}", "%s{0}", "[red]x[/red]", "latent-1", "1.2.3-a", "null", "🦜"]
NUMBERS = [0, -1, 1, 2, 3, 4, 5, 1 << 24, (1 << 24) + 1, 1 << 31, 1 << 63, 1 << 64, 10**30, True, 0.5, -0.0, 5e-324]
NUMBERS += [1e308, float("inf"), float("-inf"), float("nan")]
SIZES: list[list[int]] = [[], [0], [1], [6], [2, 3], [6, 1], [1] * 65, [0, 1 << 63], [0, (1 << 64) - 1], [1 << 40]]
DTYPES = {"F32": 4, "F64": 8, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "C64": 8, "F4": 1}
DEEP = 500
COMMON = ["9" * 5000, "1e999", "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "{a: 1, a: 2}", '"', "[1,"]
YAML = ["0x" + "f" * 5000, "0b" + "1" * 20_000, "1" + ":59" * 3000, "1:30.5", "0b_", "2001-13-45", ".nan"]
YAML += ["&a x", "*a", "!!binary aGk=", "!x%0Ay z", "{<<: {a: 1}}", "{[1]: 2}", "{? {a: b} : c}", "=", "<<", "0o7"]
YAML += ['"\\ud800"', '"\\e[2J"', '"\\0"', "[" + "1," * 2000 + "]", "2001-01-01"]
YAML += ["{" + ",".join(f"k{number}: x" for number in range(500)) + "}"]
JSON = ["NaN", "-Infinity", '{"a": 1, "a": 2}', '"\\ud800"', '"\\u001b[2J"', "[" + "{}," * 2000 + "{}]"]


def words() -> st.SearchStrategy[str]:
    return st.sampled_from(SPELLINGS) | st.text(st.characters(exclude_categories=()), max_size=12)


def odd(texts: Sequence[str] = ()) -> st.SearchStrategy[Any]:
    """An unexpected value, sometimes one of `texts` verbatim."""
    plain = st.sampled_from(NUMBERS) | words() | st.sampled_from([None, [], {}, [[]], [None, 1], {"a": {"b": 1}}])
    return plain | st.builds(Raw, st.sampled_from(list(texts))) if texts else plain


def mutated(draw: Draw, tree: Of, values: st.SearchStrategy[Any]) -> Of:
    """A copy with up to three mutations."""
    changed = {"": copy.deepcopy(tree)}
    for _ in range(draw(st.integers(1, 3))):
        _mutate(draw, changed, values)
    return changed[""]


def _mutate(draw: Draw, node: Any, values: st.SearchStrategy[Any]) -> None:
    key = draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
    while isinstance(node[key], (dict, list)) and node[key] and draw(st.integers(0, 4)):
        node = node[key]
        key = draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
    kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "wrap", "repeat", "rename", "swap"]))
    if kind == "remove" and "" not in node:
        del node[key]
    elif kind == "add" and isinstance(node[key], dict):
        node[key][draw(words())] = copy.deepcopy(draw(values))  # it may be changed, too
    elif kind == "wrap":
        for _ in range(draw(st.sampled_from([1, 2, 20]))):
            node[key] = draw(st.sampled_from([[node[key]], {"a": node[key]}]))
    elif kind == "repeat" and isinstance(node[key], list):
        node[key] = node[key] * draw(st.sampled_from([2, 40]))
    elif kind == "rename" and isinstance(node, dict) and "" not in node:
        node[draw(words())] = node.pop(key)
    elif kind == "swap" and not isinstance(node[key], dict):
        other = draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
        node[key], node[other] = node[other], node[key]
    else:
        node[key] = copy.deepcopy(draw(values))


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def as_yaml(tree: object) -> bytes:
    texts: list[str] = []
    text = yaml.dump(_marked(tree, texts), Dumper=_Dumper, sort_keys=False)
    for number, raw in enumerate(texts):
        text = text.replace(f"RAW{number}RAW", raw)
    return text.encode("utf-8", "surrogatepass")


def as_json(tree: object) -> bytes:
    texts: list[str] = []
    text = json.dumps(_marked(tree, texts))
    for number, raw in enumerate(texts):
        text = text.replace(f'"RAW{number}RAW"', raw)
    return text.encode("utf-8", "surrogatepass")


def _marked(tree: object, texts: list[str]) -> object:
    if isinstance(tree, dict):
        return {key: _marked(value, texts) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_marked(value, texts) for value in tree]
    if isinstance(tree, Raw):
        texts.append(tree.text)
        return f"RAW{len(texts) - 1}RAW"
    return tree


def damaged(draw: Draw, data: bytes) -> bytes:
    """The bytes with some replaced, inserted, cut off, removed or repeated."""
    altered = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        first, last = sorted(draw(st.tuples(st.integers(0, len(altered)), st.integers(0, len(altered)))))
        piece = draw(st.binary(max_size=8) | st.sampled_from([b"\xff" * 8, bytes(8), b"\n", b"\xef\xbb\xbf", b"\x1b"]))
        kind = draw(st.sampled_from(["replace", "insert", "cut", "take", "twice"]))
        if kind == "replace":
            altered[first : first + len(piece)] = piece
        elif kind == "insert":
            altered[first:first] = piece
        elif kind == "cut":
            del altered[last:]
        elif kind == "take":
            del altered[first : min(last, first + 64)]
        else:
            altered[last:last] = altered[first:last]
    return bytes(altered)
