"""Which tasks and arms an experiment runs, with which settings, and which folder it fills."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lm_eval_hybrid.bundles.manifest import Words, first_problem
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.common.files import write_file
from lm_eval_hybrid.decoding.policy import ARMS
from lm_eval_hybrid.harness.resuming import SUFFIX
from lm_eval_hybrid.results.runs import WITHOUT

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

EXPERIMENT_FILE = "experiment.json"
DONE_FILE = "done.json"
"""In an arm's folder: the tasks that are finished, each with its results file."""

SCHEMA = 1
PAPER = ("base", "hybrid", "thinking", "bias-only", "random-category", "random-vectors")
"""The paper's three systems and its controls, which it calls bias only, random firing and random vectors."""

LEAVE_ONE_OUT = "leave-one-out"
_GROUPS = {"paper": PAPER, "all": ARMS}
# Fields in which two calls that fill one folder may differ: none changes a token.
_FREE = ("arms", "tasks", "batch_size", "device", "use_cache")
_FREE_ARGUMENTS = {"base_device", "thinking_device", "ndif_host", "ndif_timeout", "ndif_patience"}


class Experiment(BaseModel):
    """Arms x tasks with all their settings.

    Attributes:
        behaviors: bundles, as model argument `behaviors` takes them.
        tasks: tasks and groups of the harness.
        arms: as `decoding.policy.ARMS` names them, or `without KEY`: the hybrid with one behavior left out.
        model_args: other arguments of model `hybrid`.
        limit: documents of each task; below 1 a share of them; None for all.
        gen_kwargs: generation settings, which override the tasks'.
        num_fewshot, metadata, include_path, apply_chat_template, system_instruction: as the harness takes them.
        seed: of decoding, and of the harness.
        bootstrap_seed: of the intervals.
        batch_size: answers at once, or `auto`.
        use_cache: path of the harness's response cache; the arm's name is appended.
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
    """Make an experiment of JSON data; `where` begins the error.

    Raises:
        HybridError: the data are not an experiment's.
    """
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        raise HybridError(f"{where}: {first_problem(error)}; fix it") from None


def named_arms(names: Iterable[str], keys: Iterable[str]) -> tuple[str, ...]:
    """Resolve names of arms and groups to arms, each once, in canonical order.

    Args:
        names: arms, `paper`, `all`, or `leave-one-out`: the hybrid without each of its behaviors in turn.
        keys: of the bundle's behaviors.

    Raises:
        HybridError: for an unknown name.
    """
    without = [f"{WITHOUT}{key}" for key in keys]
    chosen: set[str] = set()
    for name in names:
        if name == LEAVE_ONE_OUT:
            chosen |= {"hybrid", *without}
        elif name in _GROUPS:
            chosen.update(_GROUPS[name])
        elif name in ARMS or name in without:
            chosen.add(name)
        else:
            known = ", ".join([*_GROUPS, LEAVE_ONE_OUT, *ARMS])
            raise HybridError(f"--arms has unknown {name!r}; choose of {known}, or 'without KEY'")
    return tuple(arm for arm in (*ARMS, *without) if arm in chosen)


def claim(folder: Path, experiment: Experiment, versions: Mapping[str, str]) -> Experiment:
    """Record in `folder` which experiment fills it. Returns that: this one, plus the arms and tasks it had before.

    A folder in which nothing has been finished is free for another experiment.

    Args:
        versions: of the packages that decide results.

    Raises:
        HybridError: the folder is of another experiment, or of other versions.
    """
    path = folder / EXPERIMENT_FILE
    begun = [*folder.glob(f"*/{DONE_FILE}"), *folder.glob(f"*/*{SUFFIX}")]
    if path.exists() and begun:
        experiment = _merged(path, experiment, versions)
    content = {"schema_version": SCHEMA, "versions": dict(versions), "experiment": experiment.model_dump(mode="json")}
    write_file(path, json.dumps(content, indent=2).encode() + b"\n")
    return experiment


def check_tasks(manager: "TaskManager", tasks: Sequence[str]) -> None:
    """Check that the harness knows all tasks.

    Raises:
        HybridError: it does not know one; names tasks that are spelled alike.
    """
    known = set(manager.all_tasks)
    if unknown := [task for task in tasks if task not in known]:
        import difflib

        near = difflib.get_close_matches(unknown[0], sorted(known), n=3)
        advice = f"did you mean {' or '.join(near)}?" if near else "lm_eval ls tasks lists them"
        raise HybridError(f"--tasks has {unknown[0]}, which the harness does not know; {advice}")


@contextmanager
def loading_data(tasks: Iterable[str]) -> Iterator[None]:
    """Report data that cannot be downloaded as one line."""
    try:
        yield
    except ConnectionError as error:  # what datasets and the hub raise
        raise HybridError(
            f"the data of {', '.join(tasks)} cannot be loaded: {error}; go online, or name a folder that holds them "
            "(docs/tasks.md)"
        ) from error


def _merged(path: Path, experiment: Experiment, versions: Mapping[str, str]) -> Experiment:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        former = read(content["experiment"], str(path))
        former_versions = dict(content["versions"])
    except HybridError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise HybridError(f"{path}: not what run writes ({error}); name another --out folder") from None
    old, new = _deciding(former, former_versions), _deciding(experiment, versions)
    for name, value in new.items():
        if old.get(name) != value:
            raise HybridError(
                f"{path.parent} holds an experiment with {name} {old.get(name)}, not {value}; a folder is of one "
                "experiment; name another --out folder, or run it with the former value"
            )
    arms = [arm for arm in (*ARMS, *experiment.arms, *former.arms) if arm in {*experiment.arms, *former.arms}]
    return experiment.model_copy(
        update={
            "arms": tuple(dict.fromkeys(arms)),
            "tasks": tuple(dict.fromkeys((*former.tasks, *experiment.tasks))),
        }
    )


def _deciding(experiment: Experiment, versions: Mapping[str, str]) -> dict[str, Any]:
    """Everything that decides a token, by name."""
    fields = {name: value for name, value in experiment.model_dump(mode="json").items() if name not in _FREE}
    arguments = {name: value for name, value in experiment.model_args.items() if name not in _FREE_ARGUMENTS}
    return fields | {"model_args": arguments} | {f"version of {name}": version for name, version in versions.items()}
