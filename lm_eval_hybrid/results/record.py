"""Turns runs of a bundle into the results that its manifest records."""

import logging

from lm_eval_hybrid.bundles.contents import TENSORS_FILE
from lm_eval_hybrid.bundles.manifest import Manifest, Result
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.results.runs import SETTINGS, WITHOUT, ArmRun, Runs
from lm_eval_hybrid.results.statistics import gap

log = logging.getLogger(__name__)
NEEDED = ("base", "hybrid", "thinking")


def results(runs: Runs, manifest: Manifest, seed: int = 0) -> tuple[Result, ...]:
    """One result for each task that was run with this bundle by the arms in NEEDED; it includes controls that were run.

    Args:
        seed: of the bootstrap.

    Raises:
        HybridError: a run used other tensors or another policy, or no task has all arms.
    """
    found = []
    for task in runs.tasks:
        # With a behavior left out it is another suite; its cost is in gap.json.
        arms = {arm: run for arm, run in runs.arms(task).items() if not arm.startswith(WITHOUT)}
        if missing := [arm for arm in NEEDED if arm not in arms]:
            log.warning("%s is left out: no run of arm %s", task, " or ".join(missing))
            continue
        for run in arms.values():
            _check(run, manifest)
        found.append(_result(arms, task, seed))
    if not found:
        raise HybridError(
            f"{', '.join(runs.tasks)}: no task has runs of all of {', '.join(NEEDED)}; run the missing arms into the "
            "same folder"
        )
    return tuple(found)


def _result(arms: dict[str, ArmRun], task: str, seed: int) -> Result:
    hybrid = arms["hybrid"]
    measured = gap(arms["base"].scores, hybrid.scores, arms["thinking"].scores, seed)
    interval = None if measured.low is None or measured.high is None else (measured.low, measured.high)
    return Result(
        task=task,
        scores={arm: _rounded(sum(run.scores) / len(run.scores)) for arm, run in arms.items()},
        gap_recovered=None if measured.recovered is None else _rounded(measured.recovered),
        gap_interval=None if interval is None else (_rounded(interval[0]), _rounded(interval[1])),
        steered_fraction=_rounded(hybrid.steered_fraction or 0.0),
        changed_fraction=_rounded(hybrid.changed_fraction or 0.0),
        documents=len(hybrid.documents),
        seed=hybrid.seed or 0,
        harness_version=hybrid.versions.get("lm_eval", "not recorded"),
    )


def _check(run: ArmRun, manifest: Manifest) -> None:
    if run.tensors != manifest.files[TENSORS_FILE]:
        raise HybridError(
            f"{run.task}, arm {run.arm} was run with {run.bundle}; results must be of this bundle's tensors; run it "
            "with this bundle alone, all its behaviors unchanged"
        )
    for name in SETTINGS:
        value = getattr(manifest.steering, name)
        own = str(list(value) if isinstance(value, tuple) else value)  # as a run's JSON has it
        if run.settings.get(name, own) != own:
            raise HybridError(
                f"{run.task}, arm {run.arm} was run with {name}={run.settings[name]}; results must be of the bundle's "
                "own policy; run it without that argument"
            )


def _rounded(value: float) -> float:
    return round(value, 4)
