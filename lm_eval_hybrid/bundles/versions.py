"""Semantic versions of bundles (semver.org, 2.0.0, without build metadata).

major: other models, layers or meaning; minor: retrained tensors or another policy; patch: words only.
"""

import re
from collections.abc import Iterable
from typing import Literal

# Build metadata has no precedence, so with it the highest version would not be unique.
PATTERN = (
    r"^(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})"
    r"(-(0|[1-9][0-9]{0,8}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)(\.(0|[1-9][0-9]{0,8}|[0-9]*[A-Za-z-][0-9A-Za-z-]*))*)?$"
)
_PARTIAL = r"(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8}))?"

Step = Literal["major", "minor", "patch"]
STEPS: tuple[Step, ...] = ("major", "minor", "patch")  # largest first


def is_version(text: str) -> bool:
    """Whether `text` is a complete version."""
    return re.fullmatch(PATTERN, text) is not None


def key(version: str) -> tuple[object, ...]:
    """A sort key: 1.0.0-rc.1 < 1.0.0 < 1.0.1 (semver.org, section 11)."""
    numbers, _, pre = version.partition("-")
    # Numeric identifiers sort below words; a version without pre-release above all its pre-releases.
    parts = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in pre.split(".") if part)
    return (*(int(number) for number in numbers.split(".")), not parts, parts)


def best(versions: Iterable[str], spec: str = "") -> str | None:
    """The highest of `versions` that matches `spec`, None if there is none.

    Args:
        spec: a complete version; or a prefix, `1` or `1.2`; or nothing, which matches any. A pre-release matches its
            full name, anything else only if no release does.
    """
    known = list(versions)
    if spec in known:
        return spec
    if spec and not re.fullmatch(_PARTIAL, spec):
        return None
    matching = [version for version in known if not spec or version.startswith(f"{spec}.")]
    return max(matching, key=lambda version: ("-" not in version, key(version)), default=None)


def following(version: str, step: Step) -> str:
    """The next version by one step; for a pre-release its own release, if that is step enough."""
    numbers, _, pre = version.partition("-")
    major, minor, patch = (int(number) for number in numbers.split("."))
    if step == "major":
        return f"{major}.0.0" if pre and not (minor or patch) else f"{major + 1}.0.0"
    if step == "minor":
        return f"{major}.{minor}.0" if pre and not patch else f"{major}.{minor + 1}.0"
    return f"{major}.{minor}.{patch}" if pre else f"{major}.{minor}.{patch + 1}"


def step_between(former: str, later: str) -> Step | None:
    """The largest number that `later` raises; None if `later` is not above `former`."""
    if key(later) <= key(former):
        return None
    before, after = key(former), key(later)
    return next((step for step, old, new in zip(STEPS, before, after, strict=False) if old != new), "patch")
