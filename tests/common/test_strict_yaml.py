import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.strict_yaml import MAX_BYTES, load


def read(data: bytes) -> dict:
    return load(data, "here: a file", "mend it")


def test_plain_data_is_read() -> None:
    assert read(b"a: 1\nb: [1.5, x, null, true]\nc: {d: 'e: f'}\n") == {
        "a": 1,
        "b": [1.5, "x", None, True],
        "c": {"d": "e: f"},
    }


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"a: &x 1\nb: *x", "an alias of a value in line 1"),
        (b"a: 1\nb: *x", "undefined alias"),
        (b"a: &x [l,l]\nb: &y [*x,*x]\nc: [*y,*y]", "an alias of a value in line 1"),
        (b"a: !!python/object/apply:os.system ['true']", "the tag tag:yaml.org,2002:python/object/apply:os.system"),
        (b"a: !!binary aGk=", "the tag tag:yaml.org,2002:binary"),
        (b"a: !mine 1", "the tag !mine"),
        (b"a: 1\na: 2", "duplicate key 'a'"),
        (b"b: {a: 1, a: 2}", "duplicate key 'a'"),
        (b"<<: {a: 1}", "a key that is not text in line 1"),
        (b"[1, 2]: 3", "a key that is not text"),
        (b"1: 2", "a key that is not text"),
        (b"null: 2", "a key that is not text"),
        (b"a: " + b"[" * 500 + b"]" * 500, "more than 16 levels"),
        (b"{a: " * 40 + b"}" * 40, "more than 16 levels"),
        (b"a: " + b"[" * 5000, "nesting depth"),
        (b"a: 1\n---\nb: 2", "expected a single document"),
        (b"a: 2026-13-45", "a date without quotes in line 1"),
        (b"a: " + b"9" * 5000, "a number of 5,000 characters"),
        (b"a: 1:59:59", "with colons"),
        (b"\x00", "unacceptable character"),
        (b"a: [", "did not find"),
    ],
)
def test_anything_else_is_refused_in_one_line(data: bytes, found: str) -> None:
    with pytest.raises(HybridError) as caught:
        read(data)
    assert str(caught.value).startswith("here: a file is not plain YAML: ")
    assert found in str(caught.value)
    assert str(caught.value).endswith("; mend it")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"- 1", b"text", b"null"])
def test_other_values_than_mappings_are_refused(data: bytes) -> None:
    with pytest.raises(HybridError, match="it must be a mapping"):
        read(data)


def test_size_is_bounded() -> None:
    with pytest.raises(HybridError, match="has 1,048,577 bytes; at most 1,048,576 are allowed"):
        read(b" " * (MAX_BYTES + 1))
