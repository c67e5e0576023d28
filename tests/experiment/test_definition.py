"""What an experiment is made of, and which folders it may go on in."""

import json
from pathlib import Path

import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.policy import ARMS
from lm_eval_hybrid.experiment.definition import DONE_FILE, EXPERIMENT_FILE, PAPER, Experiment, claim, named_arms, read

VERSIONS = {"lm_eval": "0.4.13"}


def experiment(**changes: object) -> Experiment:
    return Experiment.model_validate({"behaviors": "embedded", "tasks": ["toy"], "arms": ["base", "hybrid"], **changes})


def test_arms_are_named_in_groups_and_come_in_canonical_order() -> None:
    assert named_arms(["paper"], ()) == tuple(arm for arm in ARMS if arm in PAPER)
    assert named_arms(["all"], ()) == ARMS
    assert named_arms(["thinking", "base", "base"], ()) == ("base", "thinking")
    assert named_arms(["leave-one-out", "base"], ("plan", "check")) == (
        "base", "hybrid", "without plan", "without check",
    )  # fmt: skip
    assert named_arms(["without check"], ("plan", "check")) == ("without check",)


@pytest.mark.parametrize("name", ["bases", "without nothing", ""])
def test_unknown_arms(name: str) -> None:
    with pytest.raises(HybridError, match=r"--arms has unknown .*; choose of paper, all, leave-one-out, base, hybrid"):
        named_arms([name], ("plan",))


def test_an_arm_says_what_it_takes() -> None:
    plan = experiment(model_args={"dtype": "float32"}, seed=7)
    assert plan.arm_arguments("takeover") == {
        "behaviors": "embedded", "seed": 7, "dtype": "float32", "arm": "takeover",
    }  # fmt: skip
    assert plan.arm_arguments("without plan")["arm"] == "hybrid"
    assert plan.arm_arguments("without plan")["without"] == ["plan"]


def settled(folder: Path) -> None:
    """A folder in which an arm has been run."""
    claim(folder, experiment(), VERSIONS)
    (folder / "base").mkdir()
    (folder / "base" / DONE_FILE).write_text("{}")


def test_a_folder_where_nothing_was_made_is_of_no_experiment(tmp_path: Path) -> None:
    claim(tmp_path, experiment(tasks=["mistaken"], limit=3), VERSIONS)
    assert claim(tmp_path, experiment(), VERSIONS) == experiment()


def test_a_folder_takes_more_arms_and_tasks(tmp_path: Path) -> None:
    settled(tmp_path)
    joined = claim(tmp_path, experiment(arms=["thinking"], tasks=["other"], batch_size="8"), VERSIONS)
    assert joined.arms == ("base", "hybrid", "thinking")
    assert joined.tasks == ("toy", "other")
    content = json.loads((tmp_path / EXPERIMENT_FILE).read_text())
    assert read(content["experiment"], "here") == joined


def test_where_a_server_is_makes_no_other_experiment(tmp_path: Path) -> None:
    settled(tmp_path)
    moved = experiment(model_args={"ndif_host": "http://there", "ndif_timeout": 9, "ndif_patience": 9})
    assert claim(tmp_path, moved, VERSIONS) == moved
    with pytest.raises(HybridError, match="base_backend"):
        claim(tmp_path, experiment(model_args={"base_backend": "remote"}), VERSIONS)


@pytest.mark.parametrize(
    ("changes", "found"),
    [({"limit": 5}, "limit None, not 5"), ({"seed": 1}, "seed 0, not 1"), ({"behaviors": "b"}, "behaviors")],
)
def test_a_folder_is_of_one_experiment(tmp_path: Path, changes: dict[str, object], found: str) -> None:
    settled(tmp_path)
    with pytest.raises(HybridError, match=found):
        claim(tmp_path, experiment(**changes), VERSIONS)


def test_a_folder_is_of_one_version(tmp_path: Path) -> None:
    settled(tmp_path)
    with pytest.raises(HybridError, match=r"version of lm_eval 0\.4\.13, not 0\.5"):
        claim(tmp_path, experiment(), {"lm_eval": "0.5"})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"experiment": {"tasks": []}, "versions": {}}', "\xff"])
def test_a_plan_that_is_none(tmp_path: Path, text: str) -> None:
    settled(tmp_path)
    (tmp_path / EXPERIMENT_FILE).write_text(text, encoding="latin-1")
    with pytest.raises(HybridError, match=EXPERIMENT_FILE):
        claim(tmp_path, experiment(), VERSIONS)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"limit": 0}, "limit"),
        ({"tasks": []}, "tasks"),
        ({"model_args": {"arm": "base"}}, "arm is none of the model_args"),
        ({"unheard": 1}, "unheard"),
    ],
)
def test_what_means_nothing(changes: dict[str, object], found: str) -> None:
    fields = {"behaviors": "embedded", "tasks": ["toy"], "arms": ["base"], **changes}
    with pytest.raises(HybridError, match=found):
        read(fields, "the arguments")
