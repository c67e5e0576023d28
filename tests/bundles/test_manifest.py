from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lm_eval_hybrid.bundles.manifest import Manifest, dump, parse, read
from lm_eval_hybrid.common.errors import HybridError

HERE = Path("behavior.yaml")
shared_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def test_dump_and_parse_are_inverse(fields: dict) -> None:
    manifest = Manifest.model_validate(fields)
    assert parse(dump(manifest), HERE) == manifest
    assert dump(parse(dump(manifest), HERE)) == dump(manifest)


# Quotes, colons, line breaks, dates, tiny floats: whatever an author writes comes back.
@shared_fixture
@given(words=st.text(min_size=1), figure=st.floats(allow_nan=False, allow_infinity=False))
def test_any_text_and_number_survives(fields: dict, words: str, figure: float) -> None:
    training = {**fields["training"], "holdout": {words: figure}}
    manifest = Manifest.model_validate({**fields, "description": words, "training": training})
    assert parse(dump(manifest), HERE) == manifest


@shared_fixture
@given(data=st.binary())
def test_other_bytes_are_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(HybridError) as caught:
        parse(data, HERE)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("behavior.yaml: ")


@pytest.mark.parametrize(
    "data", [b"a: [", b"a: 2026-13-45", b"[" * 10_000, b"- 1", b"", b"a: !!python/object:os.system {}"]
)
def test_unreadable_yaml_is_a_user_error(data: bytes) -> None:
    with pytest.raises(HybridError, match=r"^behavior\.yaml: the manifest is "):
        parse(data, HERE)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("", {"colour": "red"}, "colour: Extra inputs are not permitted; found 'red'"),
        ("", {"schema_version": "2"}, "schema_version is '2'; this lm-eval-hybrid reads 2"),
        ("", {"name": "../up"}, "name: .*found '../up'"),
        ("", {"version": "1.0"}, "version: .*found '1.0'"),
        ("", {"version": 1.0}, "version: .*found 1.0"),
        ("", {"authors": []}, "authors: .*at least 1"),
        ("", {"files": {"../../etc/passwd": "a" * 64}}, "files"),
        ("", {"files": {"a/b": "a" * 64}}, "files"),
        ("", {"files": {"a\\b": "a" * 64}}, "files"),
        ("", {"files": {"..": "a" * 64}}, "files"),
        ("", {"files": {"README.md": "short"}}, "files"),
        ("", {"files": {"behavior.yaml": "a" * 64}}, "own digest"),
        ("steering", {"layer": 4}, "steering.layer is 4; it must be below 4, the layers of org/base"),
        ("steering", {"coefficients": []}, "steering.coefficients"),
        ("steering", {"coefficients": [float("inf")]}, "steering.coefficients.0: .*found inf"),
        ("steering", {"coefficients": [1, 1.0]}, "coefficients repeat a value"),
        ("steering", {"windows": [-1]}, "steering.windows.0: .*found -1"),
        ("steering", {"gate": "sometimes"}, "steering.gate: .*found 'sometimes'"),
        ("steering", {"gate": "random", "gate_rate": None}, "gate 'random' needs it"),
        ("steering", {"select": "fixed", "windows": [0]}, "select 'fixed' needs exactly one"),
        ("steering", {"select": "mlp"}, "needs exactly one"),
        ("sae", {"layer": 3}, "sae.layer is 3; it must be below 3"),
        ("sae", {"k": 5}, r"k is 5; it must be at most latents \(4\)"),
        ("sae", {"latents": 2}, r"latent 2; it must be below sae.latents \(2\)"),
        ("base", {"hidden_size": 0}, "base.hidden_size: .*found 0"),
    ],
)
def test_unsound_fields_are_named(fields: dict, part: str, change: dict, message: str) -> None:
    (fields[part] if part else fields).update(change)
    with pytest.raises(HybridError, match=message):
        parse_fields(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": 0}, r"share a latent: \[0, 0\]"),
        ({"key": "restate", "tensor": "vector.restate"}, "share a key"),
        ({"key": "Check It", "tensor": "vector.Check It"}, "found 'Check It'"),
        ({"tensor": "vector.other"}, "tensor is 'vector.other'; it must be 'vector.check'"),
        ({"key": "latent-3", "tensor": "vector.latent-3"}, "latent is 2; key 'latent-3' is reserved"),
    ],
)
def test_unsound_behaviors_are_named(fields: dict, change: dict, message: str) -> None:
    fields["behaviors"][1].update(change)
    with pytest.raises(HybridError, match=message):
        parse_fields(fields)


def test_an_interval_needs_a_gap(fields: dict) -> None:
    fields["results"][0].update(gap_recovered=None, gap_interval=None)
    assert parse_fields(fields).results[0].gap_recovered is None
    fields["results"][0].update(gap_recovered=0.5)
    assert parse_fields(fields).results[0].gap_interval is None
    fields["results"][0].update(gap_recovered=None, gap_interval=[0, 1])
    with pytest.raises(HybridError, match="gap_interval is given without gap_recovered"):
        parse_fields(fields)


def test_the_number_of_problems_is_given(fields: dict) -> None:
    fields["base"].update(layers=0, hidden_size=0)
    with pytest.raises(HybridError, match=r"\(1 more\)"):
        parse_fields(fields)


@pytest.mark.parametrize("version", [1, 3, 0, -1, 2.0, True, None, [], "x" * 1000])
def test_other_schema_versions_are_refused(fields: dict, version: object) -> None:
    fields |= {"schema_version": version, "unheard_of": {}}
    with pytest.raises(HybridError, match=r"schema_version is .*; this .* reads 2; .*pip install") as caught:
        parse_fields(fields)
    assert len(str(caught.value)) < 300


def test_a_manifest_is_frozen(fields: dict) -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate(fields).name = "other"


def test_a_missing_manifest_is_reported(tmp_path: Path) -> None:
    with pytest.raises(HybridError, match=r"no behavior\.yaml here"):
        read(tmp_path)
    with pytest.raises(HybridError, match=r"no behavior\.yaml here"):
        read(tmp_path / "nowhere")


def parse_fields(fields: dict) -> Manifest:
    return parse(yaml.safe_dump(fields).encode(), HERE)
