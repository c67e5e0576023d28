"""Plans an experiment: which models it needs, whether they fit, how many tokens it generates and how long it takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lm_eval.tasks import TaskManager

from lm_eval_hybrid.experiment.definition import Experiment
from lm_eval_hybrid.experiment.estimate import documents as of_tasks
from lm_eval_hybrid.experiment.estimate.documents import TaskRequests
from lm_eval_hybrid.experiment.estimate.models import Models
from lm_eval_hybrid.experiment.estimate.timing import ArmEstimate, estimate, longest
from lm_eval_hybrid.models.placement import Machine, ModelNeed, Placement


@dataclass(frozen=True)
class ExperimentPlan:
    """What an experiment takes.

    Attributes:
        names: of the models, by role.
        needs: memory of those that are loaded here.
        places: where they go; empty if they do not fit.
        complaint: why they do not fit.
    """

    names: Mapping[str, str]
    needs: tuple[ModelNeed, ...]
    places: Mapping[str, Placement]
    complaint: str
    machine: Machine
    tasks: tuple[TaskRequests, ...]
    estimates: tuple[ArmEstimate, ...]


def make(
    experiment: Experiment,
    machine: Machine | None = None,
    former: Path | None = None,
    documents: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> ExperimentPlan:
    """Plan an experiment.

    Args:
        machine: to plan for; None for this one.
        former: a folder of results to take rates from.
        documents: of each task, to be measured now; 0 for none.
        report: called with a line about the progress.

    Raises:
        HybridError: anything that would keep the experiment from running, except models that do not fit.
    """
    machine = machine or Machine.local()
    models = Models.of(experiment, machine)
    measured = None
    if former is not None:
        from lm_eval_hybrid.experiment.estimate.measuring import read_former

        measured = read_former(former)
    tokenizer = of_tasks.tokenizer_of(models.sources["base"], models.model_args)
    manager = TaskManager(include_path=experiment.include_path, metadata=experiment.metadata)
    tasks = of_tasks.requests(experiment, manager, tokenizer)
    batch_size = models.batch_size(max((max(task.prompts, default=0) + task.limit for task in tasks), default=1))
    if documents:
        from lm_eval_hybrid.experiment.estimate.measuring import measure

        measured = measure(experiment, tasks, documents, batch_size, report)
    estimates = estimate(experiment.arms, tasks, batch_size, measured, models.remote)
    needs = models.needs(batch_size, longest(estimates, tasks))
    places, complaint = models.places(needs)
    return ExperimentPlan(models.names, needs, places, complaint, machine, tasks, estimates)
