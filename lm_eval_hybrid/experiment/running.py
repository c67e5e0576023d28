"""Runs an experiment: its arms one after the other over all its tasks, with the two models loaded once.

Each arm has a folder with the harness's results and samples files and our tokens files. An arm's answers are written
as they are finished (`harness/resuming.py`), so that an interrupted run goes on from there. Its files appear all at
once, the results file last; from then on the arm is finished for these tasks and is not run again.
"""

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import locked, write_file
from lm_eval_hybrid.experiment.definition import DONE_FILE, Experiment, check_tasks, claim, loading_data

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from lm_eval_hybrid.harness.hybrid_lm import HybridLM

log = logging.getLogger(__name__)
PACKAGES = ("lm_eval_hybrid", "lm_eval", "torch", "transformers", "nnsight")
_WRITING = ".writing-"
_PARTS = ("tokens", "samples", "results")  # of a run's files, in the order in which they appear

Report = Callable[[str], None]
"""Called with a line about the progress."""


def run(experiment: Experiment, folder: Path, report: Report = log.info) -> Experiment:
    """Run every arm and task that is not finished yet. Returns the folder's experiment: arms and tasks add up.

    Raises:
        HybridError: the folder is of another experiment, or another run is at work in it; a task is unknown; or the
            model or its bundle refuses something.
    """
    # Processes of one run, side by side, share the folder.
    with locked(folder, "--out", f".lock{os.environ.get('RANK', '')}"):
        experiment = claim(folder, experiment, versions())
        todo = [(arm, tasks) for arm in experiment.arms if (tasks := _missing(folder, arm, experiment.tasks))]
        finished = len(experiment.arms) - len(todo)
        if finished:
            report(f"{finished} of {len(experiment.arms)} arms are finished already")
        if todo:
            _run_arms(experiment, folder, todo, report)
    return experiment


def versions() -> dict[str, str]:
    """Versions of the packages that decide results; `none` for one that is not installed."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "none"
    return installed


def arm_folder(folder: Path, arm: str) -> Path:
    """The folder of an arm's files."""
    return folder / arm.replace(" ", "-")


def _missing(folder: Path, arm: str, tasks: Sequence[str]) -> list[str]:
    done = _done(arm_folder(folder, arm))
    return [task for task in tasks if task not in done]


def _done(folder: Path) -> dict[str, str]:
    """The results file of each finished task; a task whose file is gone counts as not run."""
    path = folder / DONE_FILE
    if not path.exists():
        return {}
    try:
        done = json.loads(path.read_text(encoding="utf-8"))
        return {str(task): str(name) for task, name in done.items() if (folder / Path(str(name)).name).is_file()}
    except (ValueError, AttributeError) as error:
        raise HybridError(f"{path}: not what run writes ({error}); delete {folder}") from None


def _run_arms(experiment: Experiment, folder: Path, todo: Sequence[tuple[str, list[str]]], report: Report) -> None:
    from lm_eval.tasks import TaskManager

    from lm_eval_hybrid.harness.arguments import HybridArguments
    from lm_eval_hybrid.harness.hybrid_lm import HybridLM
    from lm_eval_hybrid.harness.resuming import AnswersFile

    manager = TaskManager(include_path=experiment.include_path, metadata=experiment.metadata)
    check_tasks(manager, experiment.tasks)
    loading = {"batch_size": experiment.batch_size, "device": experiment.device}
    lm = HybridLM(**experiment.arm_arguments(todo[0][0]), **loading)
    for number, (arm, tasks) in enumerate(todo, start=1):
        report(f"arm {number} of {len(todo)}: {arm}, {', '.join(tasks)}")
        begun = time.monotonic()
        answers = AnswersFile(arm_folder(folder, arm), lm.rank)
        arguments, _ = HybridArguments.split(experiment.arm_arguments(arm))
        lm.switch_arm(arguments, answers)
        _evaluate(lm, manager, experiment, arm, tasks, arm_folder(folder, arm))
        if lm.rank == 0:
            answers.remove()
        report(f"arm {number} of {len(todo)}: {arm} finished after {time.monotonic() - begun:.0f} s")


def _evaluate(
    lm: "HybridLM", manager: "TaskManager", experiment: Experiment, arm: str, tasks: list[str], target: Path
) -> None:
    from lm_eval import simple_evaluate

    limit = experiment.limit
    with loading_data(tasks):
        results = simple_evaluate(
            model=lm,
            model_args=experiment.arm_arguments(arm),
            tasks=list(tasks),
            task_manager=manager,
            num_fewshot=experiment.num_fewshot,
            batch_size=experiment.batch_size,
            device=experiment.device,
            use_cache=None if experiment.use_cache is None else f"{experiment.use_cache}_{arm.replace(' ', '-')}",
            limit=int(limit) if limit is not None and limit >= 1 else limit,
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
    if results is not None:  # only the first of several processes has them
        _write(experiment, arm, tasks, results, target)


def _write(experiment: Experiment, arm: str, tasks: Sequence[str], results: dict[str, Any], target: Path) -> None:
    """Write a run's files to a staging folder, move them into `target`, results file last, and mark its tasks done."""
    from lm_eval.loggers import EvaluationTracker

    samples = results.pop("samples")
    target.mkdir(parents=True, exist_ok=True)
    for torn in target.glob(f"{_WRITING}*"):
        shutil.rmtree(torn)
    with tempfile.TemporaryDirectory(prefix=_WRITING, dir=target) as name:
        staging = Path(name)
        tracker = EvaluationTracker(output_path=str(staging / "results.json"))
        tracker.general_config_tracker.log_experiment_args(
            model_source="hybrid",
            model_args=experiment.arm_arguments(arm),
            system_instruction=experiment.system_instruction,
            chat_template=None,
            fewshot_as_multiturn=False,
        )
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
        files = {part: sorted(staging.glob(f"{part}_*")) for part in _PARTS}
        # The harness only warns if it cannot write.
        if len(files["results"]) != 1 or len(files["samples"]) != len(results["configs"]):
            raise HybridError(f"{target}: the harness did not write all its files there; see its warnings")
        for part in _PARTS:
            for path in files[part]:
                path.rename(target / path.name)
    done = _done(target) | dict.fromkeys(tasks, files["results"][0].name)
    write_file(target / DONE_FILE, json.dumps(done, indent=2).encode() + b"\n")
