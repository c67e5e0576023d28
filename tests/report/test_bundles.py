import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.contents import tensor_shapes
from lm_eval_hybrid.bundles.difference import compare
from lm_eval_hybrid.bundles.manifest import parse
from lm_eval_hybrid.bundles.store.resolve import ListedBundle
from lm_eval_hybrid.report.bundles import print_bundle, print_difference, print_listing
from tests.bundles.conftest import fields, make_bundle  # noqa: F401 - fixtures

MANIFEST = """
name: tiny
version: 1.2.0
description: Keeps [bold]brackets[/bold].
license: MIT
authors: [A. Tester]
citation: ''
base: {id: org/base, architecture: Llama, hidden_size: 6, layers: 4, tokenizer_sha256: DIGEST}
thinking:
  {id: org/thinking, revision: abc, architecture: Llama, hidden_size: 8, layers: 3, tokenizer_sha256: DIGEST}
steering: {layer: 2, coefficients: [0.5], windows: [8, 0]}
sae: {layer: 1, latents: 4, k: 2}
behaviors:
- {key: check, latent: 2, title: Checking, description: '', examples: ['[/] fits'], tensor: vector.check}
- {key: restate, latent: 0, title: Restating, description: '', examples: [], tensor: vector.restate}
prompt: {thinking: chat}
training: {recipe: r, seed: 7, code_version: '1', data: d, data_sha256: DIGEST, holdout: {}}
results:
- {task: gsm8k_embedded, scores: {base: 0.25, hybrid: 0.75}, gap_recovered: -0.5, gap_interval: [-0.7, -0.2],
   steered_fraction: 0.07, changed_fraction: 0.05, documents: 200, seed: 0, harness_version: 0.4.13}
""".replace("DIGEST", "a" * 64)


@pytest.fixture
def listed() -> ListedBundle:
    return ListedBundle(parse(MANIFEST.encode(), Path("behavior.yaml")), Path("shelf/tiny/1.2.0"))


def printed(show: Callable[..., None], *what: object, width: int = 150) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(console, *what)
    return console.file.getvalue()


def shown(bundle: ListedBundle, width: int = 150) -> str:
    rng = np.random.default_rng(0)
    shapes = tensor_shapes(bundle.manifest)
    tensors = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    tensors["vector.check"] = -2 * tensors["vector.restate"]
    return printed(print_bundle, bundle, tensors, width=width)


def test_the_listing_has_a_row_for_each_bundle(listed: ListedBundle) -> None:
    text = printed(print_listing, [listed, listed])
    row = ["tiny", "1.2.0", "org/base", "org/thinking", "2", "-50%", "[-70,", "-20]", "gsm8k_embedded", "0", "kB"]
    assert [line.split() for line in text.splitlines()].count(row) == 2


def test_an_empty_listing_says_so() -> None:
    assert printed(print_listing, []) == "No bundles found.\n"


def test_the_texts_of_a_bundle_are_shown_unchanged(listed: ListedBundle) -> None:
    text = shown(listed)
    assert "Keeps [bold]brackets[/bold]." in text
    assert "[/] fits" in text
    assert "org/thinking@abc (Llama, 3 layers, width 8)" in text
    assert "after layer 2; coefficients 0.5; windows 8, all; gate disagreement; select guardrail" in text
    assert "75.0%" in text and "-50% [-70, -20]" in text
    assert text.index("Restating") < text.index("Checking")


def test_control_characters_of_a_manifest_have_no_effect(listed: ListedBundle) -> None:
    escape = "\x1b[2J\x07"
    first, *others = listed.manifest.behaviors
    changes = {
        "description": escape,
        "license": escape,
        "authors": (escape,),
        "base": listed.manifest.base.model_copy(update={"id": escape, "architecture": escape}),
        "behaviors": (first.model_copy(update={"title": escape, "examples": (escape,)}), *others),
        "results": tuple(result.model_copy(update={"task": escape}) for result in listed.manifest.results),
    }
    hostile = ListedBundle(listed.manifest.model_copy(update=changes), listed.path)
    text = shown(hostile) + printed(print_listing, [hostile])
    assert "\x1b" not in text and "\x07" not in text
    assert "\ufffd[2J\ufffd" in text


def test_a_narrow_terminal_keeps_every_key(listed: ListedBundle) -> None:
    text = shown(listed, width=60)
    assert all(len(line) <= 60 for line in text.splitlines())
    assert "restate" in text


def test_cosine_similarities_are_shown_by_latent(listed: ListedBundle) -> None:
    lines = shown(listed).splitlines()
    start = next(i for i, line in enumerate(lines) if "cosine similarity" in line)
    header, bias, restate, check = (line.strip("│ ").split() for line in lines[start + 1 : start + 5])
    assert header == ["bias", "0", "2"]
    assert restate[0] == "0" and restate[2:] == ["100", "-100"]
    assert check[0] == "2" and check[2:] == ["-100", "100"]
    assert bias[1] == "100" and bias[2] == restate[1]


def test_the_best_gap_ignores_undefined_ones(listed: ListedBundle) -> None:
    (result,) = listed.manifest.results
    changes = [{"gap_recovered": None, "gap_interval": None}, {"task": "better", "gap_recovered": 0.2}, {}]
    results = tuple(result.model_copy(update=change) for change in changes)
    assert "20% [-70, -20] better" in printed(print_listing, [with_results(listed, results)])
    assert " - " in printed(print_listing, [with_results(listed, results[:1])])


def with_results(listed: ListedBundle, results: tuple) -> ListedBundle:
    return ListedBundle(listed.manifest.model_copy(update={"results": results}), listed.path)


Make = Callable[..., Bundle]


def diff(before: Bundle, after: Bundle, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_difference(console, compare(before, after))
    return console.file.getvalue()


def row(text: str, begin: str) -> list[str]:
    (line,) = [line for line in map(str.strip, text.splitlines()) if line.startswith(begin)]
    return [cell for cell in line.split("  ") if cell]


def test_equal_bundles_have_no_difference(make_bundle: Make) -> None:  # noqa: F811
    assert diff(make_bundle(), make_bundle()).splitlines()[-1] == "Nothing differs."


def test_moved_vectors_are_shown_by_cosine_and_norm(make_bundle: Make) -> None:  # noqa: F811
    bundle = make_bundle()
    other = replace(bundle, tensors={**bundle.tensors, "vector.check": -2 * bundle.tensors["vector.check"]})
    text = diff(bundle, other)
    assert [cell.strip() for cell in row(text, "check")][1] == "-1.000"
    assert "(+100.0%)" in text
    assert "needs a minor step: 1.2.0 -> 1.3.0 or above. 1.2.0 is not enough." in " ".join(text.split())


def test_of_a_recipe_only_the_differing_entries_are_shown(make_bundle: Make, fields: dict) -> None:  # noqa: F811
    recipes = [json.dumps({"seed": seed, "sae": {"k": 3, "latents": 16}, "long": "the same"}) for seed in (0, 1)]
    before, after = (make_bundle(training={**fields["training"], "recipe": recipe}) for recipe in recipes)
    assert row(diff(before, after), "training.recipe")[1:3] == ["seed 0", "seed 1"]


def test_changes_of_one_kind_share_a_row(make_bundle: Make, fields: dict) -> None:  # noqa: F811
    bundle = make_bundle()
    other = replace(bundle, tensors={name: 2 * tensor for name, tensor in bundle.tensors.items()})
    text = diff(bundle, other)
    assert len([line for line in text.splitlines() if line.strip().startswith("tensors")]) == 1
    assert "sae.encoder.weight" in text and "values differ" not in text
    gone = {**fields, "behaviors": [fields["behaviors"][0]], "version": "2.0.0"}
    kept = {name: tensor for name, tensor in bundle.tensors.items() if name != "vector.check"}
    text = diff(bundle, Bundle(type(bundle.manifest).model_validate(gone), kept))
    assert [cell.strip() for cell in row(text, "behaviors")] == ["behaviors", "check", "-", "major"]
    assert "2.0.0 is enough" in text


@pytest.mark.parametrize("width", [60, 100])
def test_differences_fit_the_terminal_and_have_no_effect_on_it(make_bundle: Make, width: int) -> None:  # noqa: F811
    text = diff(make_bundle(), make_bundle(description="[bold]\x1b[2J", license="x" * 300), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "\x1b" not in text and "[bold]" in text
