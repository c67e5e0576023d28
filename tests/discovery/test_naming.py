import math

import pytest
import torch

from lm_eval_hybrid.discovery.taxonomy.naming import exemplars, keywords, name


def one_hot(*latents: int, of: int) -> torch.Tensor:
    return torch.eye(of)[list(latents)]


def titles(**titles: str) -> dict[int, tuple[str, str]]:
    """A judge's title and description of each latent; keywords l0, l1, ... name the latents."""
    return {int(key[1:]): (title, f"Of {title}.") for key, title in titles.items()}


def test_behaviors_are_named_after_the_words_that_open_most_of_their_sentences() -> None:
    sentences = [" So the count is 3.", " So the count is 4.", " Check this.", " Check it.", " Check that."]
    codes = torch.tensor([[3.0, 0, 0], [4.0, 0, 0], [0, 0, 1.0], [0, 0, 3.0], [0, 0, 2.0]])
    so, check = name(sentences, codes)
    assert (so.key, so.latent, so.title, so.tensor) == ("so-the", 0, "So the", "vector.so-the")
    assert so.examples == ("So the count is 4.", "So the count is 3.")  # the strongest first
    assert (check.key, check.latent, check.examples[0]) == ("check", 2, "Check it.")
    assert check.description == "60.0% of the sentences; named after the words that most of them open with."


def test_keys_stay_distinct_and_wordless_latents_keep_their_number() -> None:
    behaviors = name([" So it is.", " So it was.", " 1 + 1."], torch.eye(3))
    assert [b.key for b in behaviors] == ["so-it", "so-it-1", "latent-2"]
    assert behaviors[2].title == "Latent 2" and behaviors[2].description.endswith("most of them have no words.")


def test_behaviors_without_a_common_opening_are_named_after_their_keywords() -> None:
    sentences = ["Wait, is it?", "But is it right?", "Let's check: is it right?", "It is 3.", "It is 4.", "It is 5."]
    doubt, result = name(sentences, one_hot(0, 0, 0, 1, 1, 1, of=2))
    assert (doubt.title, doubt.key) == ("Right but check", "right-but-check")
    assert doubt.description == "50.0% of the sentences; named after the words that tell them from the others."
    assert result.title == "It is"


def test_a_latent_without_sentences_gets_no_behavior_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    (behavior,) = name(["So it is."], one_hot(1, of=4))
    assert behavior.latent == 1 and "latents without sentences get no behavior: 0, 2, 3" in caplog.text
    caplog.clear()
    name(["So it is."], one_hot(0, of=1))
    assert not caplog.records


def test_keywords_are_weighed_by_class_tf_idf() -> None:
    sentences = ["the sum the sum the", "the check check the", "the \\frac{x}{y} sum"]
    found = keywords(sentences, torch.tensor([0, 1, 0]), 5)
    # In category 0: 4 of 6 `the` of all, 3 of 3 `sum`, x and y, of 13 words; categories have 6.5 in the mean.
    weights = {"the": 2 * math.log(1 + 6.5 / 6), "sum": math.sqrt(3) * math.log(1 + 6.5 / 3), "x": math.log(7.5)}
    assert sorted(weights, key=weights.get, reverse=True) == ["x", "sum", "the"]
    assert found[0] == ("x", "y", "sum")  # `the` is rarer than overall (4 of 9), and \frac no word
    assert found[1] == ("check", "the")
    assert keywords(sentences, torch.tensor([0, 1, 0]), 1) == {0: ("x",), 1: ("check",)}


def test_keywords_of_a_single_category_and_of_no_words() -> None:
    assert keywords(["It is.", "It was."], torch.tensor([4, 4]), 5)[4] == ("is", "was", "it")
    assert keywords(["1 + 1", ""], torch.tensor([0, 1]), 5) == {0: (), 1: ()}


def test_exemplars_are_different_and_strongest_first() -> None:
    codes = torch.tensor([[1.0, 0], [3.0, 0], [2.0, 0], [0, 9.0], [3.0, 0]])
    sentences = [" a", "b", "b ", "c", "d"]
    assert exemplars(sentences, codes, 0, 5) == ("b", "d", "a")
    assert exemplars(sentences, codes, 0, 2) == ("b", "d")
    assert exemplars(sentences, torch.zeros(5, 3), 2, 2) == ()


def test_a_judges_titles_are_preferred() -> None:
    sentences = ["So it is.", "Check this.", "Check that.", "1 + 1"]
    judged = titles(l0="Stating a result", l3="Of nobody")
    first, second, third = name(sentences, one_hot(0, 1, 1, 2, of=4), judged)
    assert (first.key, first.title) == ("stating-a-result", "Stating a result")
    assert first.description == "Of Stating a result. (25.0% of the sentences)"
    assert (second.title, second.examples) == ("Check", ("Check this.", "Check that."))
    assert third.key == "latent-2"


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        (("Check", "Check"), ["check", "check-1"]),
        (("Step 1", "Step", "Step"), ["step-1", "step", "step-2"]),
        (("Step 2", "Step", "Step"), ["step-2", "step", "step-2-2"]),
        (("Latent 1", "Latent 01", "latent"), ["latent-0", "latent-1", "latent"]),
        (("Überprüfung: é?", "Let's see"), ["uberprufung-e", "lets-see"]),
        (("検算", "∑∑"), ["latent-0", "latent-1"]),
        (("word " * 11 + "x", "--a--"), ["-".join(["word"] * 11) + "-x", "a"]),
    ],
)
def test_keys_are_made_from_titles_and_kept_distinct(given: tuple[str, ...], keys: list[str]) -> None:
    sentences = [f"{i}." for i in range(len(given))]
    judged = titles(**{f"l{i}": title for i, title in enumerate(given)})
    behaviors = name(sentences, torch.eye(len(given)), judged)
    assert [behavior.key for behavior in behaviors] == keys
    assert [behavior.title for behavior in behaviors] == list(given)


def test_long_words_make_bounded_keys() -> None:
    (behavior,) = name(["A" * 5000 + " " + "b" * 5000], one_hot(0, of=1))
    assert len(behavior.key) <= 60 and len(behavior.title) <= 80


def test_a_title_that_names_another_latent_is_no_key() -> None:
    judged = titles(l0="latent 3")
    (behavior,) = name(["So."], one_hot(0, of=1), judged)
    assert (behavior.key, behavior.title) == ("latent-0", "latent 3")
