"""How the cost of a token grows with the length of the answer."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from benchmarks.contest import Contest

_NAMES = {"lockstep": "lockstep", "ours": "ours", "base": "base, generate", "thinking": "thinking, generate"}


def plot(path: Path, contests: Sequence[Contest]) -> None:
    """One panel for each contest, all ways in it."""
    figure = Figure(figsize=(4.2 * len(contests), 4), layout="constrained")
    panels = figure.subplots(1, len(contests), squeeze=False, sharey=True)[0]
    for panel, contest in zip(panels, contests, strict=True):
        tokens = [n * contest.batch for n in contest.lengths]
        naive = [contest.naive[n] / count for n, count in zip(contest.lengths, tokens, strict=True)]
        panel.plot(contest.lengths, [1000 * s for s in naive], "o-", label="naive loop, sampled")
        for way, name in _NAMES.items():
            medians = [median(contest.seconds[way, n]) for n in contest.lengths]
            costs = [1000 * s / count for s, count in zip(medians, tokens, strict=True)]
            panel.plot(contest.lengths, costs, "o-", label=name)
        panel.set(title=f"{contest.pair}, batch {contest.batch}", xlabel="new tokens", xscale="log", yscale="log")
        panel.set_xticks(contest.lengths, map(str, contest.lengths), minor=False)
        panel.xaxis.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("milliseconds a token")
    panels[-1].legend(fontsize="small")
    figure.savefig(path, dpi=120)
