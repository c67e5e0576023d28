import json
from pathlib import Path

import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.jsonl import cut_torn, rows


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    texts = ["a\u2028b", "c\u0085d", "e"]
    path.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    assert list(rows(path)) == list(enumerate(texts, 1))


def test_a_torn_last_line_is_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('1\n{"a": ')
    assert list(rows(path, torn=True)) == [(1, 1)]
    with pytest.raises(HybridError, match=r"rows\.jsonl:2: not JSON"):
        list(rows(path))


@pytest.mark.parametrize("line", [b"{", b'"\xff"', b"[" * 100_000])
def test_other_lines_are_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"1\n" + line + b"\n")
    with pytest.raises(HybridError, match=r"rows\.jsonl:2: not JSON"):
        list(rows(path))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(HybridError, match="cannot be read"):
        list(rows(tmp_path))


@pytest.mark.parametrize(("held", "left"), [(b"1\n2\n", b"1\n2\n"), (b"1\n2", b"1\n"), (b"1", b""), (b"", b"")])
def test_a_torn_line_is_cut_off(tmp_path: Path, held: bytes, left: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(held)
    cut_torn(path)
    assert path.read_bytes() == left
