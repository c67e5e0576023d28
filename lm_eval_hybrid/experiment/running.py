"""Runs an experiment: its arms one after the other over all its tasks, the two models loaded once.

A folder for each arm, with the harness's results and samples files and our tokens files. An arm's answers are written
down as they are finished (`harness/answers_file.py`); its files appear all at once, the results file last, and from
then on the arm is finished for these tasks: it is not run again.
"""

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import locked, write_file
from lm_eval_hybrid.experiment.plan import DONE_FILE, Experiment, settle

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from lm_eval_hybrid.harness.hybrid_lm import HybridLM

log = logging.getLogger(__name__)
PACKAGES = ("lm_eval_hybrid", "lm_eval", "torch", "transformers", "nnsight")
_WRITING = ".writing-"
_PARTS = ("tokens", "samples", "results")  # of a run's files, in the order in which they appear

Report = Callable[[str], None]
"""Is told, in a line, what goes on."""


def run(experiment: Experiment, folder: Path, report: Report = log.info) -> Experiment:
    """Runs whatever is not there yet. Returns the experiment that the folder is of: arms and tasks add up.

    Raises:
        HybridError: for a folder of another experiment, or one where another run is at work; for an unknown task; and
            whatever the model or its bundle refuses.
    """
    # Processes of one run, side by side, share the folder.
    with locked(folder, "--out", f".lock{os.environ.get('RANK', '')}"):
        experiment = settle(folder, experiment, versions())
        todo = [(arm, tasks) for arm in experiment.arms if (tasks := _missing(folder, arm, experiment.tasks))]
        finished = len(experiment.arms) - len(todo)
        if finished:
            report(f"{finished} of {len(experiment.arms)} arms are finished already")
        if todo:
            _run(experiment, folder, todo, report)
    return experiment


def versions() -> dict[str, str]:
    """Of the packages that decide results; `none` where one is not installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def arm_folder(folder: Path, arm: str) -> Path:
    """Where an arm's files are."""
    return folder / arm.replace(" ", "-")


def _missing(folder: Path, arm: str, tasks: Sequence[str]) -> list[str]:
    done = _done(arm_folder(folder, arm))
    return [task for task in tasks if task not in done]


def _done(folder: Path) -> dict[str, str]:
    """Of each task that is finished its results file; a task whose files are gone counts as not run."""
    path = folder / DONE_FILE
    if not path.exists():
        return {}
    try:
        done = json.loads(path.read_text(encoding="utf-8"))
        return {str(task): str(name) for task, name in done.items() if (folder / Path(str(name)).name).is_file()}
    except (ValueError, AttributeError) as error:
        raise HybridError(f"{path}: must be what run writes; found {error}; delete {folder}") from None


def _run(experiment: Experiment, folder: Path, todo: Sequence[tuple[str, list[str]]], report: Report) -> None:
    from lm_eval.tasks import TaskManager

    from lm_eval_hybrid.harness.arguments import HybridArguments
    from lm_eval_hybrid.harness.hybrid_lm import HybridLM
    from lm_eval_hybrid.harness.resuming import AnswersFile

    manager = TaskManager(include_path=experiment.include_path, metadata=experiment.metadata)
    _check_tasks(manager, experiment.tasks)
    loading = {"batch_size": experiment.batch_size, "device": experiment.device}
    lm = HybridLM(**experiment.arm_arguments(todo[0][0]), **loading)
    for place, (arm, tasks) in enumerate(todo, start=1):
        report(f"arm {place} of {len(todo)}: {arm}, {', '.join(tasks)}")
        begun = time.monotonic()
        kept = AnswersFile(arm_folder(folder, arm), lm.rank)
        ours, _ = HybridArguments.split(experiment.arm_arguments(arm))
        lm.switch_arm(ours, kept)
        _evaluate(lm, manager, experiment, arm, tasks, folder)
        if lm.rank == 0:
            kept.remove()
        report(f"arm {place} of {len(todo)}: {arm} finished after {time.monotonic() - begun:.0f} s")


def _check_tasks(manager: "TaskManager", tasks: Sequence[str]) -> None:
    known = set(manager.all_tasks)
    if unknown := [task for task in tasks if task not in known]:
        import difflib

        near = difflib.get_close_matches(unknown[0], sorted(known), n=3)
        advice = f"did you mean {' or '.join(near)}?" if near else "lm_eval ls tasks lists them"
        raise HybridError(f"--tasks must be known to the harness; found {unknown[0]}; {advice}")


def _evaluate(
    lm: "HybridLM", manager: "TaskManager", experiment: Experiment, arm: str, tasks: list[str], folder: Path
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    arguments = experiment.arm_arguments(arm)
    cache = None if experiment.use_cache is None else f"{experiment.use_cache}_{arm.replace(' ', '-')}"
    evaluate = partial(
        simple_evaluate,
        model=lm,
        model_args=arguments,
        tasks=list(tasks),
        task_manager=manager,
        num_fewshot=experiment.num_fewshot,
        batch_size=experiment.batch_size,
        device=experiment.device,
        use_cache=cache,
        limit=_limit(experiment.limit),
        log_samples=True,
        bootstrap_iters=0,  # our own intervals are paired
        system_instruction=experiment.system_instruction,
        apply_chat_template=experiment.apply_chat_template,
        gen_kwargs=dict(experiment.gen_kwargs) or None,
        random_seed=experiment.seed,
        numpy_random_seed=experiment.seed,
        torch_random_seed=experiment.seed,
        fewshot_random_seed=experiment.seed,
    )
    try:
        results = evaluate()
    except ConnectionError as error:  # what datasets and the hub raise
        raise HybridError(
            f"the data of {', '.join(tasks)} must be on the hub or in its cache; found: {error}; go online, or give "
            "them a folder (docs/tasks.md)"
        ) from error
    if results is None:  # not the first of several processes
        return
    samples = results.pop("samples")
    target = arm_folder(folder, arm)
    target.mkdir(parents=True, exist_ok=True)
    for torn in target.glob(f"{_WRITING}*"):
        shutil.rmtree(torn)
    with tempfile.TemporaryDirectory(prefix=_WRITING, dir=target) as name:
        staging = Path(name)
        tracker = EvaluationTracker(output_path=str(staging / "results.json"))
        tracker.general_config_tracker.log_experiment_args(
            model_source="hybrid",
            model_args=arguments,
            system_instruction=experiment.system_instruction,
            chat_template=None,
            fewshot_as_multiturn=False,
        )
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
        _appear(staging, target, tasks, results)


def _appear(staging: Path, target: Path, tasks: Sequence[str], results: dict[str, Any]) -> None:
    """Move a run's files to where they belong, the results file last; then say that its tasks are done."""
    files = {part: sorted(staging.glob(f"{part}_*")) for part in _PARTS}
    # The harness says no more than a warning where it cannot write.
    if len(files["results"]) != 1 or len(files["samples"]) != len(results["configs"]):
        raise HybridError(f"{target}: the harness must write its files there; found some missing; see what it says")
    for part in _PARTS:
        for path in files[part]:
            path.rename(target / path.name)
    done = _done(target) | dict.fromkeys(tasks, files["results"][0].name)
    write_file(target / DONE_FILE, json.dumps(done, indent=2).encode() + b"\n")


def _limit(limit: float | None) -> float | int | None:
    return int(limit) if limit is not None and limit >= 1 else limit
