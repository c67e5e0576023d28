"""What an experiment is made of: which tasks, which arms, with what."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lm_eval_hybrid.bundles.manifest import Words, first_problem
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.decoding.arms import ARMS
from lm_eval_hybrid.harness.resuming import SUFFIX
from lm_eval_hybrid.results.runs import WITHOUT

PLAN_FILE = "experiment.json"
DONE_FILE = "done.json"
"""In an arm's folder: the tasks that it has been run on, each with its results file."""

SCHEMA = 1
PAPER = ("base", "hybrid", "thinking", "bias-only", "random-category", "random-vectors")
"""What the paper runs: its three systems, and the controls that it calls bias only, random firing, random vectors."""

LEAVE_ONE_OUT = "leave-one-out"
_GROUPS = {"paper": PAPER, "all": ARMS}
# What may differ between two calls that fill one folder: it decides no token.
_FREE = ("arms", "tasks", "batch_size", "device", "use_cache")
_FREE_ARGUMENTS = {"base_device", "thinking_device", "ndif_host", "ndif_timeout", "ndif_patience"}


class Experiment(BaseModel):
    """Everything that a user asks for.

    Attributes:
        behaviors: bundles, as model argument `behaviors` takes them.
        tasks: tasks and groups of the harness.
        arms: as `decoding.arms.ARMS` names them, or `without KEY`: the hybrid with one behavior left out.
        model_args: other arguments of model `hybrid`.
        limit: documents of each task; below 1 the share of them; None for all.
        gen_kwargs: of generation, over what the tasks say.
        num_fewshot, metadata, include_path, apply_chat_template, system_instruction: as the harness takes them.
        seed: of decoding, and of the harness.
        bootstrap_seed: of the intervals.
        batch_size: answers at once, or `auto`.
        use_cache: the harness's response cache, with the arm's name added.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    behaviors: Words
    tasks: Annotated[tuple[Words, ...], Field(min_length=1)]
    arms: Annotated[tuple[Words, ...], Field(min_length=1)]
    model_args: dict[str, Any] = {}
    limit: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    gen_kwargs: dict[str, Any] = {}
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    metadata: dict[str, Any] = {}
    include_path: str | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    bootstrap_seed: Annotated[int, Field(ge=0)] = 0
    batch_size: str = "1"
    device: str | None = None
    use_cache: str | None = None

    @pydantic.field_validator("model_args")
    @classmethod
    def _without_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in ("arm", "behaviors", "without", "seed", "device", "batch_size"):
            if name in value:
                raise ValueError(f"{name} is none of the model_args of an experiment; use its own option")
        return value

    def arm_arguments(self, arm: str) -> dict[str, Any]:
        """Arguments of model `hybrid` for one arm."""
        chosen = {"arm": "hybrid", "without": [arm.removeprefix(WITHOUT)]} if arm.startswith(WITHOUT) else {"arm": arm}
        return {"behaviors": self.behaviors, "seed": self.seed, **self.model_args, **chosen}


def read(data: Mapping[str, Any], where: str) -> Experiment:
    """An experiment from JSON data.

    Raises:
        HybridError: it is none.
    """
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        raise HybridError(f"{where}: {first_problem(error)}; mend it") from None


def named_arms(names: Iterable[str], keys: Iterable[str]) -> tuple[str, ...]:
    """The arms that are meant, each once, in canonical order.

    Args:
        names: arms, `paper`, `all`, or `leave-one-out`: the hybrid without each of its behaviors in turn.
        keys: of the bundle's behaviors.

    Raises:
        HybridError: for a name that means nothing.
    """
    without = [f"{WITHOUT}{key}" for key in keys]
    found: set[str] = set()
    for name in names:
        if name == LEAVE_ONE_OUT:
            found |= {"hybrid", *without}
        elif name in _GROUPS:
            found.update(_GROUPS[name])
        elif name in ARMS or name in without:
            found.add(name)
        else:
            known = ", ".join([*_GROUPS, LEAVE_ONE_OUT, *ARMS])
            raise HybridError(f"--arms must be of {known}, or 'without KEY'; found {name!r}; choose some")
    return tuple(arm for arm in (*ARMS, *without) if arm in found)


def settle(folder: Path, experiment: Experiment, versions: Mapping[str, str]) -> Experiment:
    """The experiment that `folder` is of from now on: this one, and the arms and tasks that it had before.

    A folder in which nothing has been made yet is of none.

    Args:
        versions: of the packages that decide results.

    Raises:
        HybridError: the folder is of another experiment, or of other versions.
    """
    path = folder / PLAN_FILE
    made = [*folder.glob(f"*/{DONE_FILE}"), *folder.glob(f"*/*{SUFFIX}")]
    if path.exists() and made:
        experiment = _joined(path, experiment, versions)
    content = {"schema_version": SCHEMA, "versions": dict(versions), "experiment": experiment.model_dump(mode="json")}
    write_file(path, json.dumps(content, indent=2).encode() + b"\n")
    return experiment


def _joined(path: Path, experiment: Experiment, versions: Mapping[str, str]) -> Experiment:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        former = read(content["experiment"], str(path))
        then = dict(content["versions"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, HybridError):
            raise
        raise HybridError(f"{path}: must be what run writes; found {error}; name another --out folder") from None
    old, new = (each.model_dump(mode="json") for each in (former, experiment))
    facts = {name: (old[name], new[name]) for name in new if name not in _FREE}
    facts["model_args"] = tuple(
        {name: value for name, value in arguments.items() if name not in _FREE_ARGUMENTS}
        for arguments in facts["model_args"]
    )
    facts |= {f"version of {name}": (then.get(name), version) for name, version in versions.items()}
    for name, (before, now) in facts.items():
        if before != now:
            raise HybridError(
                f"{path.parent}: a folder is of one experiment; found one with {name} {before}, here it is {now}; "
                "name another --out folder, or run it as it was"
            )
    arms = [arm for arm in (*ARMS, *experiment.arms, *former.arms) if arm in {*experiment.arms, *former.arms}]
    return experiment.model_copy(
        update={
            "arms": tuple(dict.fromkeys(arms)),
            "tasks": tuple(dict.fromkeys((*former.tasks, *experiment.tasks))),
        }
    )
