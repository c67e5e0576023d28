import json
from pathlib import Path

import pytest

from lm_eval_hybrid.bundles.formats.reference_parts import LatentWords, taxonomy
from lm_eval_hybrid.common.errors import HybridError


def put(tmp_path: Path, fields: object) -> Path:
    path = tmp_path / "sae_topk_results_thinking_layer1.json"
    path.write_text(json.dumps(fields))
    return path


def naming(word: str, score: float | None = None, **more: object) -> dict:
    scored = {} if score is None else {"final_score": score}
    return {"categories": [["0", word, f" {word} it is. "]], **scored, **more}


def sizes(*namings: dict, **more: object) -> dict:
    return {"results_by_cluster_size": {"1": {"all_results": list(namings), **more}, "2": "of another form"}}


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ((None, None), "A"),
        ((0.2, 0.7), "B"),
        ((0.7, 0.7), "A"),
        ((None, 0.1), "B"),
        ((float("nan"), 0.1), "B"),
    ],
)
def test_the_best_naming_is_taken(tmp_path: Path, scores: tuple, best: str) -> None:
    path = put(tmp_path, sizes(naming("A", scores[0]), naming("B", scores[1])))
    assert taxonomy(path, 1) == {0: LatentWords(best, f"{best} it is.")}


def test_examples_are_of_the_size_or_of_the_naming(tmp_path: Path) -> None:
    own = naming("A", detailed_results={"0": {"title": "A", "examples": ["mine"], "f1": 0.5}})
    assert taxonomy(put(tmp_path, sizes(own)), 1)[0].examples == ("mine",)
    shared = {"0": [" a ", "", "b", "a", "c", "d"]}
    assert taxonomy(put(tmp_path, sizes(own, examples=shared)), 1)[0].examples == ("a", "b", "c")


def test_sizes_without_names_have_no_words(tmp_path: Path) -> None:
    assert taxonomy(put(tmp_path, sizes()), 1) == {}
    assert taxonomy(put(tmp_path, sizes(naming("A"))), 3) == {}
    assert taxonomy(put(tmp_path, {"detailed_results": None}), 3) == {}


def test_the_older_form(tmp_path: Path) -> None:
    older = naming("A", accuracy=0.6, detailed_results={"0": {"examples": ["x"]}})
    assert taxonomy(put(tmp_path, {"detailed_results": {"1": older}}), 1)[0] == LatentWords("A", "A it is.", ("x",))


def test_a_title_is_one_line_and_never_empty(tmp_path: Path) -> None:
    path = put(tmp_path, sizes({"categories": [[0, " ", ""], [1, "So\n it is", ""]]}))
    assert [words.title for words in taxonomy(path, 1).values()] == ["Category 0", "So it is"]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        (sizes({"categories": [["0", "A"]]}), "for 1 latents: all_results.0.categories.0"),
        (sizes({"categories": [["zero", "A", ""]]}), "found 'zero'"),
        (sizes({"categories": [["0", 5, ""]]}), "valid string"),
        (sizes({"categories": [["0", "\ud800", ""]]}), "surrogates"),
        (sizes({"categories": 3}), "categories"),
        (sizes({"final_score": "high"}), "final_score"),
        ({"results_by_cluster_size": {"1": []}}, "for 1 latents: Input should be"),
        ([], "must be a JSON object"),
    ],
)
def test_other_forms_are_refused(tmp_path: Path, fields: object, found: str) -> None:
    path = put(tmp_path, fields)
    with pytest.raises(HybridError) as caught:
        taxonomy(path, 1)
    message = str(caught.value)
    assert found in message and str(path) in message and "\n" not in message
