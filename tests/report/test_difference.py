import io
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.difference import compare
from lm_eval_hybrid.report.difference import print_difference
from tests.bundles.conftest import fields, make_bundle  # noqa: F401 - fixtures

Make = Callable[..., Bundle]


def printed(before: Bundle, after: Bundle, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_difference(console, compare(before, after))
    return console.file.getvalue()


def row(text: str, begin: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(begin)]
    return [cell for cell in line.split("  ") if cell]


def test_bundles_that_are_the_same(make_bundle: Make) -> None:  # noqa: F811
    assert printed(make_bundle(), make_bundle()).splitlines()[-1] == "Nothing differs."


def test_moved_vectors_are_shown_by_cosine_and_norm(make_bundle: Make) -> None:  # noqa: F811
    bundle = make_bundle()
    other = replace(bundle, tensors={**bundle.tensors, "vector.check": -2 * bundle.tensors["vector.check"]})
    text = printed(bundle, other)
    assert [cell.strip() for cell in row(text, "check")][1] == "-1.000"
    assert "(+100.0%)" in text
    assert "calls for a minor step: 1.2.0 -> 1.3.0 or above. 1.2.0 is not enough." in " ".join(text.split())


def test_only_what_differs_of_a_recipe_is_shown(make_bundle: Make, fields: dict) -> None:  # noqa: F811
    recipes = [json.dumps({"seed": seed, "sae": {"k": 3, "latents": 16}, "long": "the same"}) for seed in (0, 1)]
    before, after = (make_bundle(training={**fields["training"], "recipe": recipe}) for recipe in recipes)
    assert row(printed(before, after), "training.recipe")[1:3] == ["seed 0", "seed 1"]


def test_what_is_of_one_kind_is_one_row(make_bundle: Make, fields: dict) -> None:  # noqa: F811
    bundle = make_bundle()
    other = replace(bundle, tensors={name: 2 * tensor for name, tensor in bundle.tensors.items()})
    text = printed(bundle, other)
    assert len([line for line in text.splitlines() if line.startswith("tensors")]) == 1
    assert "sae.encoder.weight" in text and "values differ" not in text
    gone = {**fields, "behaviors": [fields["behaviors"][0]], "version": "2.0.0"}
    kept = {name: tensor for name, tensor in bundle.tensors.items() if name != "vector.check"}
    text = printed(bundle, Bundle(type(bundle.manifest).model_validate(gone), kept))
    assert [cell.strip() for cell in row(text, "behaviors")] == ["behaviors", "check", "-", "major"]
    assert "2.0.0 is enough" in text


@pytest.mark.parametrize("width", [60, 100])
def test_it_fits_the_terminal_and_does_nothing_to_it(make_bundle: Make, width: int) -> None:  # noqa: F811
    text = printed(make_bundle(), make_bundle(description="[bold]\x1b[2J", license="x" * 300), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "\x1b" not in text and "[bold]" in text
