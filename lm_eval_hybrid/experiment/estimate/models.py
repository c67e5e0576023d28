"""The models of an experiment, without loading them: which are needed, where, how large they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.experiment.plan import Experiment
from lm_eval_hybrid.harness import loading
from lm_eval_hybrid.harness.arguments import HybridArguments
from lm_eval_hybrid.harness.loading import REMOTE_BATCH
from lm_eval_hybrid.harness.memory import check_batch_sizes
from lm_eval_hybrid.models.placement import Machine, ModelNeed, Placement, PlacementOptions, place_models
from lm_eval_hybrid.models.sizes import ModelFootprint, model_footprint
from lm_eval_hybrid.models.sources import ModelSource

_MOST = 64  # texts at once, where the harness is told `auto`: its own bound


@dataclass(frozen=True)
class Models:
    """Those that the arms of an experiment take.

    Attributes:
        names: as the user or the bundle calls them, by role.
        sources: where they come from, by role.
        theirs: what the user gives HFLM.
        sizes: of those that are loaded in this process.
        read: roles that some arm reads; the base is loaded all the same.
        wishes: what the user settled of where they go.
    """

    names: Mapping[str, str]
    sources: Mapping[str, ModelSource]
    theirs: Mapping[str, Any]
    sizes: Mapping[str, ModelFootprint]
    read: frozenset[str]
    wishes: PlacementOptions
    machine: Machine

    @classmethod
    def of(cls, experiment: Experiment, machine: Machine) -> "Models":
        """Those of an experiment on a machine.

        Raises:
            HybridError: for arguments that model `hybrid` refuses, or a model whose configuration cannot be had.
        """
        split = [HybridArguments.split(experiment.arm_arguments(arm)) for arm in experiment.arms]
        ours, theirs = split[0]
        theirs |= {"batch_size": experiment.batch_size, "device": experiment.device}
        theirs["device"] = theirs["device"] or ("cuda" if machine.gpus else "cpu")
        check_batch_sizes(theirs)
        revision = theirs.pop("revision", None)
        manifest = ours.suite().manifest
        policies = [arguments.policy(manifest.steering) for arguments, _ in split]
        sources = {"base": ModelSource.choose("base", ours.base, manifest.base, revision)}
        if any(policy.reads_thinking for policy in policies):
            sources["thinking"] = ModelSource.choose("thinking", ours.thinking, manifest.thinking)
        backends = {"base": ours.base_backend, "thinking": ours.thinking_backend}
        sizes = {
            role: model_footprint(source, loading.arguments_for(theirs, role))
            for role, source in sources.items()
            if backends[role] == "local"
        }
        names = {"base": str(ours.base or manifest.base.id), "thinking": str(ours.thinking or manifest.thinking.id)}
        names = {role: names[role] for role in sources}
        read = {"thinking"} | ({"base"} if any(policy.reads_base for policy in policies) else set())
        return cls(
            names, sources, theirs, sizes, frozenset(read), loading.device_wishes(ours, theirs, machine), machine
        )

    @property
    def remote(self) -> bool:
        """Whether one is on a server."""
        return len(self.sizes) < len(self.sources)

    def needs(self, rows: int, tokens: int) -> tuple[ModelNeed, ...]:
        """Of those that are loaded here, with `rows` texts of `tokens` tokens at once."""
        return tuple(
            ModelNeed(role, size, rows if role in self.read else 0, tokens) for role, size in self.sizes.items()
        )

    def places(self, needs: Sequence[ModelNeed]) -> tuple[dict[str, Placement], str]:
        """(where each goes, why they do not fit, if so)."""
        try:
            return place_models(needs, self.machine, self.wishes), ""
        except HybridError as error:
            return {}, str(error)

    def slots(self, tokens: int) -> int:
        """Texts of `tokens` tokens to work on at once, as the user says or as many as there is room for."""
        asked = str(self.theirs["batch_size"])
        if not asked.startswith("auto"):
            return int(asked)
        if self.remote:
            return REMOTE_BATCH
        rows = int(self.theirs.get("max_batch_size") or _MOST)
        while rows > 1 and self.places(self.needs(rows, tokens))[1]:
            rows //= 2
        return rows
