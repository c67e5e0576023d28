import torch

from lm_eval_hybrid.discovery.naming import name


def test_behaviors_are_named_after_the_words_that_open_most_of_their_sentences() -> None:
    sentences = [" So the count is 3.", " So the count is 4.", " Check this.", " Check it.", " Check that."]
    codes = torch.tensor([[3.0, 0, 0], [4.0, 0, 0], [0, 0, 1.0], [0, 0, 3.0], [0, 0, 2.0]])
    so, check = name(sentences, codes)
    assert (so.key, so.latent, so.title, so.tensor) == ("so-the", 0, "So the", "vector.so-the")
    assert so.examples == ("So the count is 4.", "So the count is 3.")  # the strongest first
    assert (check.key, check.latent, check.examples[0]) == ("check", 2, "Check it.")
    assert check.description.startswith("60.0%")


def test_keys_stay_distinct_and_wordless_latents_keep_their_number() -> None:
    behaviors = name([" So it is.", " So it was.", " 1 + 1."], torch.eye(3))
    assert [b.key for b in behaviors] == ["so-it", "so-it-1", "latent-2"]
