"""A rule's and a judge's scores of the same answers, as a table."""

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from lm_eval_hybrid.judging.verdicts import Agreement
from lm_eval_hybrid.report.figures import ABSENT

_NUMBERS = ("rule right", "judge right", "agree", "kappa", "only rule", "only judge", "unclear")


def render(found: Mapping[str, Agreement], judge: str) -> Table:
    """A row for each model.

    Args:
        found: of each model, by its name, the agreement of the rule, first, with the judge, second.
        judge: its identity, for the table's caption.
    """
    caption = f"judge: {judge}; shares are of the answers that it judged, kappa is Cohen's"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption=Text(caption, style="dim"))
    table.caption_justify = "left"
    table.add_column("model", overflow="fold")
    for name in _NUMBERS:
        table.add_column(name, justify="right", overflow="fold")
    for model, of in found.items():
        table.add_row(*map(Text, (model, *_cells(of))))
    return table


def _cells(of: Agreement) -> tuple[str, ...]:
    return (
        _percent(of.first_right),
        _percent(of.second_right),
        _percent(of.share),
        ABSENT if of.kappa is None else f"{of.kappa:.3f}",
        f"{of.only_first:,}",
        f"{of.only_second:,}",
        f"{of.unclear:,}",
    )


def _percent(share: float | None) -> str:
    return ABSENT if share is None else f"{share:.1%}"
