"""The choice of a format, given or detected."""

from pathlib import Path

import pytest

from lm_eval_hybrid.bundles.formats import READABLE, WRITABLE, convert
from lm_eval_hybrid.common.errors import HybridError


def test_every_named_format_has_a_reader_or_writer() -> None:
    assert tuple(convert._READERS) == READABLE
    assert tuple(convert._WRITERS) == WRITABLE


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.gguf", "gguf"),
        ("a.pt", "steered"),
        ("a.pth", "steered"),
        ("a.csv", "steered"),
        ("folder/mapping.yaml", "mapping"),
        ("folder/cfg.json", "saelens"),
        ("folder/vars/a.pt", "reference"),
    ],
)
def test_formats_are_detected(tmp_path: Path, name: str, format: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert convert.detect(tmp_path / name.split("/")[0]) == format


@pytest.mark.parametrize("name", ["a.bin", "folder/a.bin"])
def test_unknown_formats_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with pytest.raises(HybridError, match="of unknown format; it must be one of reference, mapping"):
        convert.detect(tmp_path / name.split("/")[0])
