import yaml

from lm_eval_hybrid.bundles.card import render
from lm_eval_hybrid.bundles.manifest import Manifest


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_the_card_says_what_the_manifest_says(fields: dict) -> None:
    text = render(Manifest.model_validate(fields))
    assert "\n---\n\n# tiny 1.2.0\n\nA bundle for tests.\n" in text
    assert "behaviors=tiny@1.2.0" in text
    assert "after layer 2 with coefficients 0.5, 1 over windows of 1, all positions" in text
    assert "| gsm8k_embedded | 200 | 25.0% | 75.0% | 71% [62, 80] | 7.0% | 5.0% | 0.4.13 |" in rows(text)
    assert "MIT. By A. Tester." in text


def test_the_yaml_at_the_top_is_for_the_hub(fields: dict) -> None:
    fields["base"]["id"] = "./here/base"
    head = yaml.safe_load(render(Manifest.model_validate(fields)).split("---")[1])
    assert head == {
        "library_name": "lm-eval-hybrid",
        "license": "mit",
        "base_model": ["org/thinking"],
        "tags": ["behavior-bundle", "steering-vectors", "sparse-autoencoder", "reasoning"],
    }


def test_unknown_facts_are_dashes(fields: dict) -> None:
    fields["base"].update(layers=None, architecture=None, tokenizer_sha256=None)
    fields["training"].update(seed=None, data_sha256=None, holdout={})
    fields["results"][0]["gap_interval"] = None
    fields["behaviors"][0]["examples"] = []
    text = render(Manifest.model_validate(fields))
    assert "| base | org/base | - | - | 6 | - |" in rows(text)
    assert "| tiny | - | 0.1.0 | none | - |" in rows(text)
    assert "71% [no interval]" in text
    assert "held-out figure" not in text
    assert "None" not in text


def test_template_syntax_in_texts_is_not_evaluated(fields: dict) -> None:
    fields["description"] = "{{ m.license }} {% raw %}"
    assert "{{ m.license }} {% raw %}" in render(Manifest.model_validate(fields))


def test_texts_cannot_break_a_table(fields: dict) -> None:
    text = render(Manifest.model_validate(fields))
    restating = next(row for row in rows(text) if row.startswith("| restate |"))
    assert restating.replace(r"\|", "").count("|") == 6
    fields["behaviors"][0]["description"] = "Two\nlines"
    assert "Restating: Two lines" in render(Manifest.model_validate(fields))


def test_an_undefined_gap_is_shown_as_such(fields: dict) -> None:
    fields["results"][0].update(gap_recovered=None, gap_interval=None)
    assert "undefined" in render(Manifest.model_validate(fields))


def test_missing_arms_are_dashes(fields: dict) -> None:
    fields["results"].append({**fields["results"][0], "task": "other", "scores": {"takeover": 0.9}})
    assert "| other | 200 | - | - | 90.0% |" in render(Manifest.model_validate(fields))


def test_the_card_does_not_depend_on_files(fields: dict) -> None:
    # The card's own digest is among the files, so the card must not depend on them.
    plain = render(Manifest.model_validate(fields))
    assert render(Manifest.model_validate({**fields, "files": {"README.md": "c" * 64}})) == plain
    assert "## Results" not in render(Manifest.model_validate({**fields, "results": []}))
