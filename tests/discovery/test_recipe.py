from pathlib import Path

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
        ("a: [", "must be YAML"),
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
