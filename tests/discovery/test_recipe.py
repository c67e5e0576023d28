from pathlib import Path
from typing import Any

import pytest

from lm_eval_hybrid.discovery.recipe import RECIPES, load
from lm_eval_hybrid.errors import HybridError


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_packages_recipes_are_sound(path: Path) -> None:
    assert load(path.stem) == load(str(path))


def test_fields_can_be_changed() -> None:
    assert load("embedded", base="other").base == "other"


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(HybridError, match=r"embedded.*found 'embeded'"):
        load("embeded")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a list", "must be a mapping; found list"),
        ("a: [", "must be plain YAML"),
        ("surprise: 1", "description: Field required"),
    ],
)
def test_unsound_files_are_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(HybridError, match=said) as error:
        load(str(path))
    assert "\n" not in str(error.value)


def test_a_misspelt_part_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((RECIPES / "embedded.yaml").read_text().replace("latents:", "latent:"))
    with pytest.raises(HybridError, match=r"sae\.latent"):
        load(str(path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"coefficients": ()}, "coefficients"),
        ({"windows": ()}, "windows"),
        ({"windows": (-1,)}, r"windows\.0"),
        ({"authors": ()}, "authors"),
        ({"license": ""}, "license"),
        ({"sae": {"layer": 1, "latents": 4, "k": 5}}, r"sae: k must be at most latents \(4\); found 5"),
        ({"sae": {"layer": -1, "latents": 4, "k": 1}}, r"sae\.layer.*found -1"),
        ({"vectors": {"layer": -1}}, r"vectors\.layer"),
        ({"vectors": {"layer": 1, "batch": 0}}, r"vectors\.batch"),
    ],
)
def test_fields_out_of_range_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(HybridError, match=said) as error:
        load("embedded", **change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"\xff\xfe\xff", b"\xc3\x28: 1", b"day: 2001-13-99"])
def test_files_that_are_no_yaml_are_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(data)
    with pytest.raises(HybridError, match=r"mine\.yaml: a recipe must be plain YAML") as error:
        load(str(path))
    assert "\n" not in str(error.value)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").mkdir()
    with pytest.raises(HybridError, match="must be a readable file"):
        load(str(tmp_path / "mine.yaml"))
