"""Evaluations of a bundle, as results for its manifest."""

import logging

from lm_eval_hybrid.bundles.contents import TENSORS_FILE
from lm_eval_hybrid.bundles.manifest import Manifest, Result
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.results.runs import SETTINGS, WITHOUT, ArmRun, Runs
from lm_eval_hybrid.results.statistics import gap

log = logging.getLogger(__name__)
NEEDED = ("base", "hybrid", "thinking")


def results(runs: Runs, manifest: Manifest, seed: int = 0) -> tuple[Result, ...]:
    """A result a task that was run with this bundle by the arms in NEEDED, controls included where they were run, too.

    Args:
        seed: of the bootstrap.

    Raises:
        HybridError: where a run was made with other tensors or another policy, or no task has all that is needed.
    """
    found = []
    for task in runs.tasks:
        # With a behavior left out it is another suite; what that costs is in gap.json.
        arms = {arm: run for arm, run in runs.arms(task).items() if not arm.startswith(WITHOUT)}
        if missing := [arm for arm in NEEDED if arm not in arms]:
            log.warning("%s is left out: no run of arm %s", task, " or ".join(missing))
            continue
        for run in arms.values():
            _check(run, manifest)
        found.append(_result(arms, task, seed))
    if not found:
        raise HybridError(
            f"results need a task with runs of arms {', '.join(NEEDED)}; found {', '.join(runs.tasks)} without all "
            "of them; run the arms that are missing into the same folder"
        )
    return tuple(found)


def _result(arms: dict[str, ArmRun], task: str, seed: int) -> Result:
    hybrid = arms["hybrid"]
    measured = gap(arms["base"].scores, hybrid.scores, arms["thinking"].scores, seed)
    interval = (
        None if measured.low is None or measured.high is None else (_digits(measured.low), _digits(measured.high))
    )
    return Result(
        task=task,
        scores={arm: _digits(sum(run.scores) / len(run.scores)) for arm, run in arms.items()},
        gap_recovered=None if measured.recovered is None else _digits(measured.recovered),
        gap_interval=interval,
        steered_fraction=_digits(hybrid.steered_fraction or 0.0),
        changed_fraction=_digits(hybrid.changed_fraction or 0.0),
        documents=len(hybrid.documents),
        seed=hybrid.seed or 0,
        harness_version=hybrid.versions.get("lm_eval", "not recorded"),
    )


def _check(run: ArmRun, manifest: Manifest) -> None:
    if run.tensors != manifest.files[TENSORS_FILE]:
        raise HybridError(
            f"results must be of this very bundle's tensors; found {run.task}, arm {run.arm}, run with {run.bundle}; "
            "run it with this bundle alone, all its behaviors as they are"
        )
    differing = [name for name in SETTINGS if name in run.settings and run.settings[name] != _said(manifest, name)]
    if differing:
        raise HybridError(
            f"results must be of the bundle's own policy; found {differing[0]}={run.settings[differing[0]]} in "
            f"{run.task}, arm {run.arm}; run it without that argument"
        )


def _said(manifest: Manifest, name: str) -> str:
    value = getattr(manifest.steering, name)
    return str(list(value) if isinstance(value, tuple) else value)  # as a run's JSON has it


def _digits(value: float) -> float:
    return round(value, 4)
