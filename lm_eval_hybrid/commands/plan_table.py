"""A plan as a person sees it; at most 100 columns wide."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lm_eval_hybrid.experiment.estimate.documents import TaskRequests
from lm_eval_hybrid.experiment.estimate.timing import ArmEstimate
from lm_eval_hybrid.models.placement import USABLE_SHARE, Machine, ModelNeed, Placement, gib

if TYPE_CHECKING:
    from lm_eval_hybrid.experiment.estimate.plan import ExperimentPlan

ABSENT = "-"


def render(plan: "ExperimentPlan") -> Group:
    """All of it."""
    parts = [_models(plan), *_memory(plan.needs, plan.machine), _tasks(plan.tasks), _arms(plan.estimates)]
    return Group(*parts, Text("Time is of generation; loading the models and scoring come on top.", style="dim"))


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `5 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"


def _table(*columns: str, words: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        left = name == columns[0] or name in words
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    return table


def _models(plan: "ExperimentPlan") -> Table:
    table = _table("model", "parameters", "weights in", "weights", "texts", "together", "goes to", words=["goes to"])
    for role, name in plan.names.items():
        need = next((need for need in plan.needs if need.role == role), None)
        if need is None:
            table.add_row(*map(Text, (f"{role} {name}", *[ABSENT] * 5, "a server")))
            continue
        size = need.size
        kept = str(size.dtype).removeprefix("torch.") if size.bits is None else f"{size.bits} bits"
        cells = (f"{size.parameters / 1e9:,.3f} b", kept, gib(size.weights), gib(need.working), gib(need.total))
        table.add_row(*map(Text, (f"{role} {name}", *cells, _where(plan.places.get(role)))))
    return table


def _where(place: Placement | None) -> str:
    if place is None:
        return "nowhere"
    if place.device is not None:
        return place.device
    return ", ".join(f"{device} {gib(size)}" for device, size in place.parts.items())


def _memory(needs: Sequence[ModelNeed], machine: Machine) -> list[RenderableType]:
    if not needs:
        return []
    need = max(needs, key=lambda need: need.rows)
    there = ", ".join(f"{device} {gib(room)}" for device, room in machine.usable.items())
    return [
        Text(f"Texts: {need.rows} at once, of up to {need.tokens:,} tokens: keys, values and the largest pass."),
        Text(f"There is, counting {USABLE_SHARE:.0%} of what is free: {there}."),
    ]


def _tasks(tasks: Sequence[TaskRequests]) -> Table:
    table = _table("task", "docs", "requests", "prompt tokens", "the longest", "answer at most")
    for task in tasks:
        longest = max(task.prompts, default=0)
        counts = (task.documents, len(task.prompts), sum(task.prompts), longest, task.limit)
        table.add_row(Text(task.task), *[f"{count:,}" for count in counts])
    return table


def _arms(estimates: Sequence[ArmEstimate]) -> Table:
    remote = any(estimate.requests != {} for estimate in estimates)
    columns = ["arm", "an answer", "tokens", *(["requests"] if remote else []), "time", "from"]
    table = _table(*columns, words=["from"])
    for estimate in estimates:
        requests = ABSENT if estimate.requests is None else f"{sum(estimate.requests.values()):,}"
        time = "unknown" if estimate.seconds is None else duration(estimate.seconds)
        cells = ("", f"{estimate.tokens:,}", *([requests] if remote else []), time, estimate.origin)
        table.add_row(Text(estimate.arm, style="bold"), *map(Text, cells))
        for task in estimate.tasks:
            mean = task.total / max(1, len(task.lengths))
            cells = (f"{mean:,.1f}", f"{task.total:,}", *([""] if remote else []), "", task.origin)
            table.add_row(Text(f"  {task.task}"), *map(Text, cells))
    known = [estimate.seconds for estimate in estimates if estimate.seconds is not None]
    if len(known) == len(estimates) > 1:
        tokens = f"{sum(estimate.tokens for estimate in estimates):,}"
        asked = f"{sum(sum((estimate.requests or {}).values()) for estimate in estimates):,}"
        table.add_section()
        table.add_row("all", "", tokens, *([asked] if remote else []), duration(sum(known)), "")
    return table
