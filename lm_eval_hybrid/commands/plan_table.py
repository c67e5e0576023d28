"""The tables of `lm-eval-hybrid plan`: models and their memory, tasks, and the tokens and time of each arm."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lm_eval_hybrid.experiment.estimate.documents import TaskRequests
from lm_eval_hybrid.experiment.estimate.timing import ArmEstimate
from lm_eval_hybrid.models.placement import USABLE_SHARE, Machine, ModelNeed, Placement, gib
from lm_eval_hybrid.report.cells import ABSENT
from lm_eval_hybrid.report.terminal import duration, make_table, plain

if TYPE_CHECKING:
    from lm_eval_hybrid.experiment.estimate.plan import ExperimentPlan


def render(plan: "ExperimentPlan") -> Group:
    """All tables, at most 100 columns wide."""
    parts = [_models(plan), *_memory(plan.needs, plan.machine), _tasks(plan.tasks), _arms(plan.estimates)]
    return Group(*parts, Text("Times are for generation, without loading the models and scoring.", style="dim"))


def _models(plan: "ExperimentPlan") -> Table:
    numbers = ("parameters", "dtype", "weights", "KV cache, pass", "total")
    table = make_table("model", numbers=numbers)
    table.add_column("device", overflow="fold")
    for role, name in plan.names.items():
        need = next((need for need in plan.needs if need.role == role), None)
        if need is None:
            table.add_row(*map(plain, (f"{role} {name}", *[ABSENT] * len(numbers), "a server")))
            continue
        size = need.size
        dtype = str(size.dtype).removeprefix("torch.") if size.bits is None else f"{size.bits} bits"
        memory = gib(size.weights), gib(need.working), gib(need.total)
        device = _device(plan.places.get(role))
        table.add_row(*map(plain, (f"{role} {name}", f"{size.parameters / 1e9:,.3f} B", dtype, *memory, device)))
    return table


def _device(place: Placement | None) -> str:
    if place is None:
        return "does not fit"
    if place.device is not None:
        return place.device
    return ", ".join(f"{device} {gib(size)}" for device, size in place.parts.items())


def _memory(needs: Sequence[ModelNeed], machine: Machine) -> list[RenderableType]:
    if not needs:
        return []
    need = max(needs, key=lambda need: need.rows)
    usable = ", ".join(f"{device} {gib(size)}" for device, size in machine.usable.items())
    return [
        Text(f"KV cache and largest pass: {need.rows} sequences of up to {need.tokens:,} tokens."),
        Text(f"Usable memory ({USABLE_SHARE:.0%} of what is free): {usable}."),
    ]


def _tasks(tasks: Sequence[TaskRequests]) -> Table:
    table = make_table("task", numbers=("docs", "requests", "prompt tokens", "longest prompt", "longest answer"))
    for task in tasks:
        longest = max(task.prompts, default=0)
        counts = (task.documents, len(task.prompts), sum(task.prompts), longest, task.limit)
        table.add_row(plain(task.task), *[f"{count:,}" for count in counts])
    return table


def _arms(estimates: Sequence[ArmEstimate]) -> Table:
    """One row for each arm, below it one for each task, and a total; requests only where a model is on a server."""
    remote = any(estimate.requests != {} for estimate in estimates)

    def row(name: str, mean: str, tokens: int, requests: str, time: str, source: str) -> list[Text]:
        return [*map(plain, (name, mean, f"{tokens:,}", *([requests] if remote else []), time, source))]

    table = make_table("arm", numbers=("mean answer", "tokens", *(["requests"] if remote else []), "time"))
    table.add_column("source", overflow="fold")
    for estimate in estimates:
        requests = ABSENT if estimate.requests is None else f"{sum(estimate.requests.values()):,}"
        time = "unknown" if estimate.seconds is None else duration(estimate.seconds)
        table.add_row(*row(estimate.arm, "", estimate.tokens, requests, time, estimate.origin), style="bold")
        for task in estimate.tasks:
            mean = task.total / max(1, len(task.lengths))
            table.add_row(*row(f"  {task.task}", f"{mean:,.1f}", task.total, "", "", task.origin))
    known = [estimate.seconds for estimate in estimates if estimate.seconds is not None]
    if len(known) == len(estimates) > 1:
        requests = f"{sum(sum((estimate.requests or {}).values()) for estimate in estimates):,}"
        table.add_section()
        table.add_row(*row("all", "", sum(each.tokens for each in estimates), requests, duration(sum(known)), ""))
    return table
