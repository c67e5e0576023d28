from pathlib import Path

import pytest
import yaml

from lm_eval_hybrid.bundles.manifest import dump, parse
from lm_eval_hybrid.bundles.migrations import LATEST, migrate
from lm_eval_hybrid.common.errors import HybridError

HERE = Path("behavior.yaml")


def test_a_manifest_of_the_first_schema_is_read_as_it_is(fields: dict) -> None:
    first = parse(yaml.safe_dump({**fields, "schema_version": 1}).encode(), HERE)
    latest = parse(yaml.safe_dump({**fields, "schema_version": LATEST}).encode(), HERE)
    assert first == latest
    assert first.schema_version == LATEST
    assert first.sae.normalization == "unit"
    assert parse(dump(first), HERE) == first


def test_the_first_schema_had_its_number_as_a_default(fields: dict) -> None:
    assert parse(yaml.safe_dump(fields).encode(), HERE).schema_version == LATEST


def test_a_newer_schema_is_refused_with_the_version_to_install(fields: dict) -> None:
    newer = {**fields, "schema_version": LATEST + 1, "written_by": "0.9.2", "unheard_of": {}}
    with pytest.raises(HybridError, match=r"found 3; pip install 'lm-eval-hybrid>=0\.9\.2'"):
        parse(yaml.safe_dump(newer).encode(), HERE)


@pytest.mark.parametrize("writer", [None, 7, "x; rm -rf /", "1" * 200])
def test_a_writer_that_is_no_version_is_not_repeated(writer: object) -> None:
    with pytest.raises(HybridError, match=r"pip install --upgrade lm-eval-hybrid$"):
        migrate({"schema_version": 99, "written_by": writer}, "here")


@pytest.mark.parametrize("version", [0, -1, "1", 1.0, True, None, []])
def test_what_is_no_schema_version_is_refused(version: object) -> None:
    with pytest.raises(HybridError, match="schema_version must be a number from 1"):
        migrate({"schema_version": version}, "here")
