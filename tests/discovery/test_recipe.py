from pathlib import Path
from typing import Any

import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.discovery.recipe import RECIPES, DiscoveryRecipe, load

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
PAPER = {  # steering layer, SAE layer, latents
    "r1-llama-8b": (12, 6, 15),
    "r1-qwen-14b": (18, 38, 5),
    "r1-qwen-32b": (24, 27, 15),
    "qwq-32b": (24, 27, 10),
    "r1-qwen-1.5b": (10, 4, 15),
    "orz-0.5b": (9, 8, 10),
    "orz-1.5b": (10, 4, 10),
    "orz-7b": (10, 20, 10),
    "orz-32b": (24, 27, 15),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_packages_recipes_are_valid(name: str) -> None:
    recipe = load(name)
    assert recipe == load(str(RECIPES / f"{name}.yaml"))
    assert DiscoveryRecipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_every_pair_of_the_paper_has_its_recipe() -> None:
    assert set(NAMES) == {*PAPER, "embedded", "embedded-likelihood"}


@pytest.mark.parametrize("name", PAPER)
def test_recipes_have_the_papers_layers(name: str) -> None:
    recipe, (steered, read, latents) = load(name), PAPER[name]
    assert (recipe.vectors.layer, recipe.sae.layers, recipe.sae.sizes) == (steered, (read,), (latents,))


def test_fields_can_be_changed() -> None:
    assert load("embedded", base="other").base == "other"


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(HybridError, match=r"no recipe 'embeded'; give .* embedded, embedded-likelihood"):
        load("embeded")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a list", "it must be a mapping"),
        ("a: [", "is not plain YAML"),
        ("surprise: 1", "description: Field required"),
        ("", "a recipe"),
        ("a: &a [1]\nb: [*a, *a]", "a recipe is not plain YAML"),
        ("seed: 1\nseed: 2", "a recipe is not plain YAML"),
        ("day: 2001-13-99", "a recipe"),
    ],
)
def test_invalid_files_are_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(HybridError, match=said) as error:
        load(str(path))
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"\xff\xfe\xff", b"\xc3\x28: 1"])
def test_binary_files_are_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(data)
    with pytest.raises(HybridError, match=r"mine\.yaml: a recipe is not plain YAML") as error:
        load(str(path))
    assert "\n" not in str(error.value)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").mkdir()
    with pytest.raises(HybridError, match="the recipe cannot be read"):
        load(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("part", "misspelt", "said"),
    [
        ("sizes:", "size:", r"sae\.size"),
        ("traces:", "trace:", "trace"),
        ("hidden:", "hiden:", r"vectors\.disagreement\.hiden"),
        ("problems: 200", "problem: 200", r"calibration\.problem"),
        ("windows: [1]}", "window: [1]}", r"calibration\.settings\.0\.window"),
        ("config: main", "confg: main", r"problems\.0\.confg"),
        ("prefix:", "prefx:", r"prompt\.prefx"),
    ],
)
def test_a_misspelt_field_is_named(tmp_path: Path, part: str, misspelt: str, said: str) -> None:
    text = (RECIPES / "r1-qwen-1.5b.yaml").read_text()
    assert part in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(part, misspelt))
    with pytest.raises(HybridError, match=said) as error:
        load(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"authors": ()}, "authors"),
        ({"license": ""}, "license"),
        ({"base": 7}, r"base.*found 7"),
        ({"seed": -1}, r"seed.*found -1"),
        ({"seed": 2**31}, "seed"),
        ({"seed": "none"}, "seed"),
        ({"activation": "middle"}, "activation"),
        ({"problems": []}, "problems"),
        ({"problems": [{"data": "embedded", "prompt": "no place"}]}, r"prompt must hold \{question\}"),
        ({"problems": [{"data": "gsm8k", "split": "test"}]}, "must not be those of a test"),
        ({"traces": {"count": 0, "max_new_tokens": 4}}, r"traces\.count.*found 0"),
        ({"traces": {"count": 2, "max_new_tokens": 4, "holdout": 1.0}}, r"traces\.holdout.*found 1"),
        ({"traces": {"count": 2, "max_new_tokens": 4, "holdout": float("nan")}}, r"traces\.holdout"),
        ({"traces": {"count": "many", "max_new_tokens": 4}}, r"traces\.count"),
        ({"sae": {"layers": [1], "sizes": [4], "k": 5}}, "k must be"),
        ({"sae": {"layers": [-1], "sizes": [4]}}, r"sae\.layers\.0.*found -1"),
        ({"sae": {"layers": [], "sizes": [4]}}, r"sae\.layers"),
        ({"vectors": {"recipe": "likelihood", "layer": -1}}, r"vectors\.likelihood\.layer"),
        ({"vectors": {"recipe": "disagreement", "layer": 1, "batch": 0}}, r"vectors\.disagreement\.batch"),
        ({"vectors": {"recipe": "neither", "layer": 1}}, "vectors"),
        ({"vectors": {"layer": 1}}, "vectors"),
        ({"calibration": {"settings": []}}, r"calibration\.settings"),
        ({"calibration": {"settings": [{"coefficients": []}]}}, "coefficients"),
        ({"calibration": {"settings": [{"coefficients": [float("inf")]}]}}, "coefficients"),
        ({"calibration": {"settings": [{"windows": [-1]}]}}, r"windows\.0"),
        ({"calibration": {"settings": [{"select": "best"}]}}, "select"),
        ({"calibration": {"problems": -1}}, r"calibration\.problems"),
        ({"vectors": {"recipe": "likelihood", "layer": 1}}, "no coefficient network, which select 'mlp' needs"),
        ({"problems": [{"data": "embedded", "answer": None}]}, "calibration needs problems with an `answer`"),
    ],
)
def test_fields_out_of_range_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(HybridError, match=said) as error:
        load("embedded", **change)
    assert "\n" not in str(error.value)


def test_traces_alone_need_no_answers() -> None:
    problems = [{"data": "embedded", "answer": None}]
    assert load("embedded", problems=problems, calibration={"problems": 0}).problems[0].answer is None
