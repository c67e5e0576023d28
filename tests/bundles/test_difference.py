from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.difference import compare

Make = Callable[..., Bundle]


def changed(bundle: Bundle, part: str, **changes: object) -> Bundle:
    fields = bundle.manifest.model_dump()
    (fields[part] if part else fields).update(changes)
    return Bundle(type(bundle.manifest).model_validate(fields), bundle.tensors)


def test_a_bundle_does_not_differ_from_itself(make_bundle: Make) -> None:
    found = compare(make_bundle(), make_bundle())
    assert found.changes == ()
    assert found.step is None and found.enough
    assert all(moved.same for moved in found.vectors)


@pytest.mark.parametrize(
    ("part", "changes", "what", "step"),
    [
        ("base", {"id": "org/other"}, "base.id", "major"),
        ("base", {"revision": "abc"}, "base.revision", "patch"),  # it was open before
        ("thinking", {"layers": 5}, "thinking.layers", "major"),
        ("steering", {"layer": 1}, "steering.layer", "major"),
        ("sae", {"layer": 0}, "sae.layer", "major"),
        ("steering", {"coefficients": (0.5,)}, "steering.coefficients", "minor"),
        ("steering", {"gate": "always"}, "steering.gate", "minor"),
        ("prompt", {"prefix": ""}, "prompt.prefix", "minor"),
        ("training", {"seed": 8}, "training.seed", "minor"),
        ("training", {"holdout": {}}, "training.holdout", "patch"),
        ("", {"description": "Other words."}, "description", "patch"),
        ("", {"license": "BSD-3-Clause"}, "license", "patch"),
        ("", {"results": ()}, "results of gsm8k_embedded", "patch"),
    ],
)
def test_each_field_calls_for_its_step(make_bundle: Make, part: str, changes: dict, what: str, step: str) -> None:
    found = compare(make_bundle(), changed(make_bundle(), part, **changes))
    assert [(change.what, change.step) for change in found.changes] == [(what, step)]
    assert found.step == step


def test_versions_and_filled_in_fields_are_no_changes(make_bundle: Make) -> None:
    other = changed(
        make_bundle(), "", version="9.9.9", written_by="7", supersedes="tiny@1.0.0#0", files={"a": "a" * 64}
    )
    assert compare(make_bundle(), other).changes == ()


def test_retrained_tensors_are_a_minor_step(make_bundle: Make) -> None:
    bundle = make_bundle()
    vector = bundle.tensors["vector.check"]
    other = replace(bundle, tensors={**bundle.tensors, "vector.check": 2 * vector, "bias": -bundle.bias})
    found = compare(bundle, other)
    assert found.step == "minor"
    assert [change.what for change in found.changes] == ["tensor bias", "tensor vector.check"]
    moved = {one.before: one for one in found.vectors}
    assert moved["bias"].cosine == pytest.approx(-1)
    assert moved["check"].cosine == pytest.approx(1)
    assert moved["check"].norm_after == pytest.approx(2 * moved["check"].norm_before)
    assert moved["restate"].same and not moved["check"].same
    assert moved["check"].detector == pytest.approx(1)


def test_a_removed_key_is_a_major_step_and_a_new_one_a_minor(make_bundle: Make, fields: dict) -> None:
    bundle = make_bundle()
    renamed = [fields["behaviors"][0], {**fields["behaviors"][1], "key": "verify", "tensor": "vector.verify"}]
    tensors = {("vector.verify" if name == "vector.check" else name): t for name, t in bundle.tensors.items()}
    other = Bundle(type(bundle.manifest).model_validate({**fields, "behaviors": renamed}), tensors)
    found = compare(bundle, other)
    assert {(change.what, change.step) for change in found.changes} == {
        ("behavior check", "major"),
        ("behavior verify", "minor"),
    }
    # Whatever it is called now, it is found by what it does.
    moved = {one.before: one for one in found.vectors}
    assert moved["check"].after == "verify"
    assert moved["check"].same


@pytest.mark.parametrize(
    ("version", "changes", "enough"),
    [
        ("1.2.1", {"description": "Other."}, True),
        ("2.0.0", {"description": "Other."}, True),
        ("1.2.0", {"description": "Other."}, False),
        ("1.1.9", {"description": "Other."}, False),
        ("1.2.1", {"prompt": {"thinking": "chat"}}, False),
        ("1.3.0", {"prompt": {"thinking": "chat"}}, True),
    ],
)
def test_the_version_step_must_match_the_changes(make_bundle: Make, version: str, changes: dict, enough: bool) -> None:
    found = compare(make_bundle(), make_bundle(version=version, **changes))
    assert found.enough is enough


def test_pairs_of_other_widths_can_be_compared(make_bundle: Make, fields: dict) -> None:
    wide = make_bundle(base={**fields["base"], "hidden_size": 12}, thinking={**fields["thinking"], "hidden_size": 10})
    found = compare(make_bundle(), wide)
    assert found.step == "major"
    assert found.vectors == ()
    assert any(change.what == "tensor bias" and change.after == "[12]" for change in found.changes)


def test_a_zero_vector_has_cosine_zero(make_bundle: Make) -> None:
    bundle = make_bundle()
    zero = replace(bundle, tensors={**bundle.tensors, "bias": torch.zeros(6)})
    assert compare(zero, bundle).vectors[0].cosine == 0.0
