from collections import Counter

from lm_eval_hybrid.decoding.sampling import prompt_digest, uniform, uniform_index
from tests.oracle import naive


def test_draws_are_those_of_the_oracle() -> None:
    ids = [3, 14, 159]
    for position in range(50):
        assert uniform(7, "gate", position, prompt_digest(ids)) == naive.draw(7, "gate", position, ids)


def test_every_part_of_the_key_matters() -> None:
    key, other = prompt_digest([1, 23]), prompt_digest([12, 3])
    draws = [
        uniform(0, "gate", 0, key),
        uniform(1, "gate", 0, key),
        uniform(0, "select", 0, key),
        uniform(0, "gate", 1, key),
        uniform(0, "gate", 0, other),
    ]
    assert len(set(draws)) == len(draws)


def test_draws_are_uniform() -> None:
    key = prompt_digest([5])
    counts = Counter(uniform_index(4, 0, "category", position, key) for position in range(4000))
    assert set(counts) == {0, 1, 2, 3}
    assert all(abs(count - 1000) < 150 for count in counts.values())
