"""The next version of a bundle, from an edited copy of its folder.

A copy is edited freely: words and policy in behavior.yaml, tensors in tensors.safetensors. `renewed` finds what
changed, and seals the copy as a bundle with the version number that this calls for.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lm_eval_hybrid.bundles import contents, versions
from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.difference import BundleDifference, compare
from lm_eval_hybrid.bundles.versions import STEPS, Step
from lm_eval_hybrid.common.errors import HybridError


def renewed(former: Bundle, edited: Path, least: Step = "patch") -> BundleDifference:
    """The edited copy as the version that follows `former`, beside it; not saved yet.

    Results that were `former`'s go where more than words changed: they are of other tensors, or of another policy.

    Args:
        edited: a bundle's folder whose digests, norms and card need not be right any more.
        least: a step that is taken even where the changes call for a smaller one.

    Raises:
        HybridError: where the copy is no bundle even so, has another name, or nothing in it changed.
    """
    found = contents.read_unsealed(edited)
    copy = Bundle.of(found, edited)
    if copy.manifest.name != former.manifest.name:
        raise HybridError(
            f"{edited}: a new version keeps its name, {former.manifest.name}; found {copy.manifest.name}; "
            "restore it, or save the bundle under its own folder"
        )
    difference = compare(former, copy)
    if difference.step is None:
        raise HybridError(f"{edited}: a new version must differ from {former.identity}; found no change; edit it first")
    step = min(difference.step, least, key=STEPS.index)
    changes = {"version": versions.following(former.manifest.version, step), "supersedes": former.identity}
    if step != "patch" and copy.manifest.results == former.manifest.results:
        changes["results"] = ()
    manifest = copy.manifest.model_copy(update=changes)
    return compare(former, replace(copy, manifest=manifest, path=None, manifest_sha256=None))
