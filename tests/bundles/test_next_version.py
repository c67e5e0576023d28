import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.difference import next_version
from lm_eval_hybrid.common.errors import HybridError


@pytest.fixture
def former(make_bundle: Callable[..., Bundle], tmp_path: Path) -> Bundle:
    return make_bundle().save(tmp_path / "shelf" / "tiny" / "1.2.0")


@pytest.fixture
def copy(former: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(former.path, tmp_path / "copy"))


def edit(copy: Path, **changes: object) -> None:
    fields = yaml.safe_load((copy / "behavior.yaml").read_bytes())
    (copy / "behavior.yaml").write_text(yaml.safe_dump({**fields, **changes}))


def test_changed_words_are_a_patch_and_keep_results(former: Bundle, copy: Path, tmp_path: Path) -> None:
    edit(copy, description="Better words.")
    made = next_version(former, copy).after.save(tmp_path / "new").manifest
    assert (made.version, made.supersedes) == ("1.2.1", former.identity)
    assert made.description == "Better words."
    assert made.results == former.manifest.results


def test_changed_tensors_are_a_minor_step_and_drop_results(former: Bundle, copy: Path, tmp_path: Path) -> None:
    tensors = load_file(copy / "tensors.safetensors")
    save_file({**tensors, "vector.check": 3 * tensors["vector.check"]}, copy / "tensors.safetensors")
    made = next_version(former, copy).after.save(tmp_path / "new")
    assert made.manifest.version == "1.3.0"
    assert made.manifest.results == ()
    assert torch.equal(made.tensors["vector.check"], 3 * former.tensors["vector.check"])
    assert made.manifest.behaviors[1].norm == pytest.approx(3 * former.manifest.behaviors[1].norm, rel=1e-5)


def test_new_results_are_kept(former: Bundle, copy: Path) -> None:
    steering = {**former.manifest.model_dump(mode="json")["steering"], "coefficients": [2.0]}
    results = [{**former.manifest.model_dump(mode="json")["results"][0], "documents": 300}]
    edit(copy, steering=steering, results=results)
    made = next_version(former, copy).after.manifest
    assert made.version == "1.3.0"
    assert made.results[0].documents == 300


def test_a_larger_step_may_be_asked_for(former: Bundle, copy: Path) -> None:
    edit(copy, description="Better words.")
    assert next_version(former, copy, "major").after.manifest.version == "2.0.0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"no change from tiny@1\.2\.0#\w+"),
        ({"name": "other"}, "the name is other; a new version keeps its name, tiny"),
        ({"colour": "red"}, "colour: Extra inputs"),
    ],
)
def test_copies_that_are_no_next_version_are_refused(former: Bundle, copy: Path, changes: dict, message: str) -> None:
    edit(copy, **changes)
    with pytest.raises(HybridError, match=message):
        next_version(former, copy)


def test_an_edited_copy_must_be_sound(former: Bundle, copy: Path) -> None:
    tensors = load_file(copy / "tensors.safetensors")
    save_file({**tensors, "bias": torch.zeros(5)}, copy / "tensors.safetensors")
    with pytest.raises(HybridError, match=r"bias has shape \[5\]"):
        next_version(former, copy)
    (copy / "tensors.safetensors").unlink()
    with pytest.raises(HybridError, match="no such file"):
        next_version(former, copy)
