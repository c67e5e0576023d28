import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from lm_eval_hybrid.behaviors.manifest import parse
from lm_eval_hybrid.behaviors.resolve import Listed
from lm_eval_hybrid.report.bundles import print_bundle, print_listing

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
def listed() -> Listed:
    return Listed(parse(MANIFEST.encode(), Path("behavior.yaml")), Path("shelf/tiny/1.2.0"))


def printed(show: Callable[..., None], what: object) -> str:
    console = Console(file=io.StringIO(), width=150)
    show(console, what)
    return console.file.getvalue()


def test_the_listing_has_a_row_for_each_bundle(listed: Listed) -> None:
    text = printed(print_listing, [listed, listed])
    row = ["tiny", "1.2.0", "org/base", "org/thinking", "2", "gsm8k_embedded", "-50%", "[-70,", "-20]"]
    assert [line.split() for line in text.splitlines()[1:]] == [row, row]


def test_an_empty_listing_says_so() -> None:
    assert printed(print_listing, []) == "No bundles found.\n"


def test_a_bundle_is_shown_with_its_words_untouched(listed: Listed) -> None:
    text = printed(print_bundle, listed)
    assert "Keeps [bold]brackets[/bold]." in text
    assert "[/] fits" in text
    assert "org/thinking@abc (Llama, 3 layers, width 8)" in text
    assert "after layer 2; coefficients 0.5; windows 8, all; gate disagreement; select guardrail" in text
    assert "75.0%" in text and "-50% [-70, -20]" in text
    assert text.index("Restating") < text.index("Checking")


def test_control_characters_of_a_manifest_do_nothing(listed: Listed) -> None:
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
    hostile = Listed(listed.manifest.model_copy(update=changes), listed.path)
    text = printed(print_bundle, hostile) + printed(print_listing, [hostile])
    assert "\x1b" not in text and "\x07" not in text
    assert "\ufffd[2J\ufffd" in text


def test_a_narrow_terminal_keeps_every_key(listed: Listed) -> None:
    console = Console(file=io.StringIO(), width=60)
    print_bundle(console, listed)
    assert all(len(line) <= 60 for line in console.file.getvalue().splitlines())
    assert "restate" in console.file.getvalue()
