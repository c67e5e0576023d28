import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_hybrid.bundles.versions import STEPS, best, following, is_version, key, step_between


def test_versions_are_ordered_as_semver_says() -> None:
    # The example of semver.org section 11, and numbers that strings would order otherwise.
    pre = "alpha alpha.1 alpha.beta beta beta.2 beta.11 rc.1"
    ordered = [*(f"1.0.0-{part}" for part in pre.split()), "1.0.0", "1.2.0", "1.10.0", "2.0.0"]
    assert sorted(reversed(ordered), key=key) == ordered


@given(st.tuples(*[st.integers(0, 10**6)] * 3), st.tuples(*[st.integers(0, 10**6)] * 3))
def test_release_versions_are_ordered_as_their_numbers(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    text_a, text_b = (".".join(map(str, numbers)) for numbers in (a, b))
    assert (key(text_a) < key(text_b)) == (a < b)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("", "2.0.1"),
        ("1", "1.10.0"),
        ("1.2", "1.2.3"),
        ("1.2.3", "1.2.3"),
        ("2.1.0-rc.1", "2.1.0-rc.1"),
        ("2.1", "2.1.0-rc.1"),  # nothing is released there
        ("3", None),
        ("1.2.4", None),
        ("01", None),
        ("1.", None),
        ("latest", None),
        ("*", None),
    ],
)
def test_a_prefix_means_the_highest_matching_version(wanted: str, found: str | None) -> None:
    assert best(["1.2.0", "1.10.0", "1.2.3", "2.0.1", "2.1.0-rc.1", "12.0.0-a"], wanted) == found


@pytest.mark.parametrize(
    ("version", "following_ones"),
    [
        ("1.2.3", ("2.0.0", "1.3.0", "1.2.4")),
        ("0.1.0", ("1.0.0", "0.2.0", "0.1.1")),
        ("2.0.0-rc.1", ("2.0.0", "2.0.0", "2.0.0")),
        ("1.2.0-a", ("2.0.0", "1.2.0", "1.2.0")),
        ("1.2.3-a", ("2.0.0", "1.3.0", "1.2.3")),
    ],
)
def test_the_version_after_a_step(version: str, following_ones: tuple[str, ...]) -> None:
    assert tuple(following(version, step) for step in STEPS) == following_ones


@given(st.tuples(*[st.integers(0, 99)] * 3), st.sampled_from(STEPS))
def test_the_step_to_the_following_version_is_that_step(numbers: tuple[int, ...], step: str) -> None:
    version = ".".join(map(str, numbers))
    later = following(version, step)
    assert is_version(later)
    assert step_between(version, later) == step
    assert step_between(later, version) is None
    assert step_between(version, version) is None


@pytest.mark.parametrize("text", ["1", "1.0", "01.0.0", "1.0.0+build", "1.0.0-", "v1.0.0", "1.0.0\n", "9999999999.0.0"])
def test_invalid_versions(text: str) -> None:
    assert not is_version(text)
