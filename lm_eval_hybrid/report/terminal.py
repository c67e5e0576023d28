"""The comparison of arms as one table, with what it rests on below it."""

from collections.abc import Iterable

from rich import box
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lm_eval_hybrid.evaluation.gap import RESAMPLES, accuracy, difference, gap
from lm_eval_hybrid.evaluation.runs import SETTINGS, ArmRun, Runs

PACKAGES = ("lm_eval_hybrid", "lm_eval", "torch", "transformers", "nnsight")
ABSENT = "-"
_NUMBERS = ("steered", "changed", "tokens/s", "docs")


def render(runs: Runs, seed: int) -> Group:
    """The table of all tasks and arms, differences from the hybrid, and the footer; at most 100 columns wide.

    Args:
        seed: of the bootstrap.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("arm", overflow="fold")
    table.add_column("accuracy [95%]", justify="right", overflow="fold")
    # As wide as a number with its interval; the reasons why there is none wrap.
    table.add_column("gap recovered [95%]", justify="right", overflow="fold", max_width=24)
    for name in _NUMBERS:
        table.add_column(name, justify="right", overflow="fold")
    for task in runs.tasks:
        arms = runs.arms(task)
        table.add_row(Text(task, style="bold"))
        for run in arms.values():
            table.add_row(*_cells(run, arms, seed))
        table.add_section()
    differences = [part for task in runs.tasks for part in _differences(runs.arms(task), task, seed)]
    return Group(table, *differences, *_footer(runs, seed))


def _cells(run: ArmRun, arms: dict[str, ArmRun], seed: int) -> list[Text]:
    right = accuracy(run.scores)
    speed = run.tokens_per_second
    return [
        Text(f"  {run.arm}"),
        Text(f"{right.value:.1%} [{100 * right.low:.1f}, {100 * right.high:.1f}]"),
        Text(_gap(run, arms, seed)),
        Text(_share(run.steered_fraction)),
        Text(_share(run.changed_fraction)),
        Text(ABSENT if speed is None else f"{speed:,.0f}" if speed >= 100 else f"{speed:.1f}"),
        Text(str(right.documents)),
    ]


def _gap(run: ArmRun, arms: dict[str, ArmRun], seed: int) -> str:
    if run.arm in ("base", "thinking"):
        return ABSENT
    if missing := [arm for arm in ("base", "thinking") if arm not in arms]:
        return f"undefined: no run of {' and '.join(missing)}"
    found = gap(arms["base"].scores, run.scores, arms["thinking"].scores, seed)
    if found.recovered is None:
        return f"undefined: {found.reason}"
    if found.low is None or found.high is None:
        return f"{found.recovered:+.1%} {found.reason}"
    return f"{found.recovered:+.1%} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _share(fraction: float | None) -> str:
    return ABSENT if fraction is None else f"{fraction:.1%}"


def _differences(arms: dict[str, ArmRun], task: str, seed: int) -> list[RenderableType]:
    """Hybrid minus every other arm."""
    hybrid = arms.get("hybrid")
    others = [run for run in arms.values() if run is not hybrid]
    if hybrid is None or not others:
        return []
    items = []
    for run in others:
        found = difference(hybrid.scores, run.scores, seed)
        interval = f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
        items.append(Text(f"{run.arm} {100 * found.value:+.1f} {interval}"))
    title = Text(f"{task}: hybrid minus each arm, in points of accuracy [95%]", style="bold")
    return [title, Columns(items, padding=(0, 3)), Text()]


def _footer(runs: Runs, seed: int) -> list[Text]:
    versions = [f"{name} {_all(run.versions.get(name, 'not recorded') for run in runs.runs)}" for name in PACKAGES]
    names = [name for name in SETTINGS if any(name in run.settings for run in runs.runs)]
    settings = [f"{name} {_all(run.settings.get(name) for run in runs.runs)}" for name in names]
    lines = [
        "intervals: 95%; Wilson for accuracy, paired bootstrap over documents for the rest",
        "gap recovered: (arm - base) / (thinking - base), signed; steered, changed: of generated tokens",
        f"bundle: {_all(run.bundle or 'not recorded' for run in runs.runs)}",
        f"models: base {_all(run.base for run in runs.runs)}; thinking {_all(run.thinking for run in runs.runs)}",
        f"steering, where the arm does not set it: {', '.join(settings) or 'not recorded'}",
        f"seeds: decoding {_all(str(run.seed) for run in runs.runs)}; bootstrap {seed} ({RESAMPLES:,} draws)",
        f"versions: {', '.join(versions)}",
    ]
    return [Text(line, style="dim") for line in lines]


def _all(values: Iterable[str | None]) -> str:
    """The one value that all runs share, or every value there is; runs without one (None) do not count."""
    found = sorted({value for value in values if value is not None}) or ["not recorded"]
    return found[0] if len(found) == 1 else f"{' and '.join(found)} (runs differ)"
