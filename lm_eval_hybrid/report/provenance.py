"""What the figures of a comparison rest on, as far as the runs recorded it."""

from collections.abc import Iterable, Mapping
from typing import Any

from lm_eval_hybrid.results.runs import SETTINGS, WITHOUT, Runs
from lm_eval_hybrid.results.statistics import RESAMPLES

PACKAGES = ("lm_eval_hybrid", "lm_eval", "torch", "transformers", "nnsight")


def facts(runs: Runs, seed: int) -> list[tuple[str, str]]:
    """(name, value) of what runs share; where they differ, the value names all that there are.

    Args:
        seed: of the bootstrap.
    """
    versions = [f"{name} {_all(run.versions.get(name, 'not recorded') for run in runs.runs)}" for name in PACKAGES]
    names = [name for name in SETTINGS if any(name in run.settings for run in runs.runs)]
    settings = [f"{name} {_all(run.settings.get(name) for run in runs.runs)}" for name in names]
    return [
        # What names a behavior that was left out is the arm.
        ("bundle", _all(run.bundle or "not recorded" for run in runs.runs if not run.arm.startswith(WITHOUT))),
        ("models", f"base {_all(run.base for run in runs.runs)}; thinking {_all(run.thinking for run in runs.runs)}"),
        ("steering, where the arm does not set it", ", ".join(settings) or "not recorded"),
        ("seeds", f"decoding {_all(str(run.seed) for run in runs.runs)}; bootstrap {seed} ({RESAMPLES:,} draws)"),
        ("versions", ", ".join(versions)),
    ]


def _all(values: Iterable[str | None]) -> str:
    """The one value that all runs share, or every value there is; runs without one (None) do not count."""
    found = sorted({value for value in values if value is not None}) or ["not recorded"]
    return found[0] if len(found) == 1 else f"{' and '.join(found)} (runs differ)"


def command(made: Any) -> str | None:
    """The command of a gap.json, if that has one."""
    return made if isinstance(made, str) and made else None


def hardware(made: Any) -> list[tuple[str, str]]:
    """The hardware of a gap.json in words, as a fact; none where that does not have it."""
    if not isinstance(made, Mapping):
        return []
    named = {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in made.items()}
    words = [f"{name} {value}" for name, value in named.items() if value not in ("", None)]
    return [("hardware", "; ".join(words))] if words else []
