"""Plans an experiment: which models it needs, whether they fit, how many tokens it generates and how long it takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.experiment.definition import Experiment
from lm_eval_hybrid.experiment.estimate import documents as of_tasks
from lm_eval_hybrid.experiment.estimate.documents import TaskRequests
from lm_eval_hybrid.experiment.estimate.timing import ArmEstimate, estimate, longest
from lm_eval_hybrid.harness import loading
from lm_eval_hybrid.harness.arguments import HybridArguments
from lm_eval_hybrid.harness.loading import REMOTE_BATCH
from lm_eval_hybrid.harness.runtime import check_batch_sizes
from lm_eval_hybrid.models.placement import Machine, ModelNeed, Placement, PlacementOptions, place_models
from lm_eval_hybrid.models.sizes import ModelFootprint, model_footprint
from lm_eval_hybrid.models.sources import ModelSource


@dataclass(frozen=True)
class ExperimentPlan:
    """What an experiment takes.

    Attributes:
        names: of the models, by role.
        needs: memory needed by the models loaded on this machine.
        places: where they go; empty if they do not fit.
        complaint: why they do not fit; empty if they do.
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
        former: the folder of an earlier run, whose speed and answer lengths are used.
        documents: how many documents per task to run now, to measure speed; 0 for none.
        report: called with a line about the progress.

    Raises:
        HybridError: anything that would keep the experiment from running, except models that do not fit.
    """
    machine = machine or Machine.local()
    models = Models.of(experiment, machine)
    measured = None
    if former is not None:
        from lm_eval_hybrid.experiment.estimate.timing import read_former

        measured = read_former(former)
    tokenizer = of_tasks.tokenizer_of(models.sources["base"], models.model_args)
    manager = TaskManager(include_path=experiment.include_path, metadata=experiment.metadata)
    tasks = of_tasks.requests(experiment, manager, tokenizer)
    batch_size = models.batch_size(max((max(task.prompts, default=0) + task.limit for task in tasks), default=1))
    if documents:
        from lm_eval_hybrid.experiment.estimate.timing import measure

        measured = measure(experiment, tasks, documents, batch_size, report)
    estimates = estimate(experiment.arms, tasks, batch_size, measured, models.remote)
    needs = models.needs(batch_size, longest(estimates, tasks))
    places, complaint = models.places(needs)
    return ExperimentPlan(models.names, needs, places, complaint, machine, tasks, estimates)


_LARGEST_BATCH = 64  # the harness's own bound for batch_size auto


@dataclass(frozen=True)
class Models:
    """The models that the arms of an experiment need.

    Attributes:
        names: as the user or the bundle calls them, by role.
        sources: where they are loaded from, by role.
        model_args: the user's arguments for HFLM.
        sizes: of those that are loaded in this process, by role.
        read: roles of which some arm computes logits; the base is loaded in any case.
        wishes: the user's choice of devices.
    """

    names: Mapping[str, str]
    sources: Mapping[str, ModelSource]
    model_args: Mapping[str, Any]
    sizes: Mapping[str, ModelFootprint]
    read: frozenset[str]
    wishes: PlacementOptions
    machine: Machine

    @classmethod
    def of(cls, experiment: Experiment, machine: Machine) -> "Models":
        """Find the models of an experiment.

        Raises:
            HybridError: model `hybrid` refuses the arguments, or a model's configuration cannot be loaded.
        """
        split = [HybridArguments.split(experiment.arm_arguments(arm)) for arm in experiment.arms]
        ours, model_args = split[0]
        model_args["batch_size"] = experiment.batch_size
        model_args["device"] = experiment.device or ("cuda" if machine.gpus else "cpu")
        check_batch_sizes(model_args)
        revision = model_args.pop("revision", None)
        manifest = ours.suite().manifest
        policies = [arguments.policy(manifest.steering) for arguments, _ in split]
        sources = {"base": ModelSource.choose("base", ours.base, manifest.base, revision)}
        if any(policy.reads_thinking for policy in policies):
            sources["thinking"] = ModelSource.choose("thinking", ours.thinking, manifest.thinking)
        backends = {"base": ours.base_backend, "thinking": ours.thinking_backend}
        names = {"base": ours.base or manifest.base.id, "thinking": ours.thinking or manifest.thinking.id}
        return cls(
            names={role: str(names[role]) for role in sources},
            sources=sources,
            model_args=model_args,
            sizes={
                role: model_footprint(source, loading.arguments_for(model_args, role))
                for role, source in sources.items()
                if backends[role] == "local"
            },
            read=frozenset(("thinking", "base") if any(policy.reads_base for policy in policies) else ("thinking",)),
            wishes=loading.device_wishes(ours, model_args, machine),
            machine=machine,
        )

    @property
    def remote(self) -> bool:
        """Whether a model is on a server."""
        return len(self.sizes) < len(self.sources)

    def needs(self, rows: int, tokens: int) -> tuple[ModelNeed, ...]:
        """Memory needs of the models that are loaded here, for a batch of `rows` texts of `tokens` tokens."""
        return tuple(
            ModelNeed(role, size, rows if role in self.read else 0, tokens) for role, size in self.sizes.items()
        )

    def places(self, needs: Sequence[ModelNeed]) -> tuple[dict[str, Placement], str]:
        """(where each model goes, or why they do not fit)."""
        try:
            return place_models(needs, self.machine, self.wishes), ""
        except HybridError as error:
            return {}, str(error)

    def batch_size(self, tokens: int) -> int:
        """The batch size for texts of `tokens` tokens: the user's, or the largest that fits."""
        size = str(self.model_args["batch_size"])
        if not size.startswith("auto"):
            return int(size)
        if self.remote:
            return REMOTE_BATCH
        rows = int(self.model_args.get("max_batch_size") or _LARGEST_BATCH)
        while rows > 1 and self.places(self.needs(rows, tokens))[1]:
            rows //= 2
        return rows
