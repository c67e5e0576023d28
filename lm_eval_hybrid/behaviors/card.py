"""The README.md of a bundle, generated from its manifest so that the two cannot disagree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lm_eval_hybrid.behaviors.manifest import Manifest, Result


def render(manifest: Manifest) -> str:
    """The bundle's card as Markdown; a function of the manifest alone, its `files` excepted."""
    steering, sae, training = manifest.steering, manifest.sae, manifest.training
    identity = f"{manifest.name}@{manifest.version}"
    sections = [
        f"# {manifest.name} {manifest.version}",
        manifest.description.strip(),
        f"```\nlm_eval --model hybrid --model_args behaviors={identity} --tasks TASKS\n```",
        "## Models",
        _table(
            ("role", "model", "revision", "architecture", "hidden size", "layers"),
            [
                (role, model.id, model.revision or "-", model.architecture, model.hidden_size, model.layers)
                for role, model in (("base", manifest.base), ("thinking", manifest.thinking))
            ],
        ),
        "## Behaviors",
        _table(
            ("key", "latent", "norm", "behavior", "example"),
            [
                (b.key, b.latent, f"{b.norm:.3g}", f"{b.title}: {b.description}", *(b.examples[:1] or ("-",)))
                for b in manifest.behaviors
            ],
        ),
        "## Steering",
        f"The base model is steered after layer {steering.layer} with coefficients "
        f"{_series(f'{a:g}' for a in steering.coefficients)} over windows of "
        f"{_series(str(w) if w else 'all' for w in steering.windows)} positions; "
        f"gate `{steering.gate}`, select `{steering.select}`. "
        f"The category is read from the thinking model after layer {sae.layer} by a sparse autoencoder of "
        f"{sae.latents} latents (k = {sae.k}). "
        f"The thinking model's prompt is `{manifest.prompt.thinking}`.",
    ]
    if manifest.results:
        sections += ["## Results", _results(manifest.results)]
    sections += [
        "## Training",
        _table(
            ("recipe", "seed", "code version", "data", "data sha256"),
            [(training.recipe, training.seed, training.code_version, training.data, training.data_sha256)],
        ),
    ]
    if training.holdout:
        figures = [(name, f"{value:.4g}") for name, value in training.holdout.items()]
        sections.append(_table(("held-out figure", "value"), figures))
    sections += ["## Licence and citation", f"{manifest.license}. By {_series(manifest.authors)}."]
    if manifest.citation.strip():
        sections.append(manifest.citation.strip())
    return "\n\n".join(sections) + "\n"


def gap(result: Result) -> str:
    """Gap recovered with its interval, in percent: `71% [62, 80]`, or `undefined`."""
    if result.gap_recovered is None or result.gap_interval is None:
        return "undefined"
    low, high = result.gap_interval
    return f"{result.gap_recovered:.0%} [{100 * low:.0f}, {100 * high:.0f}]"


def _results(results: Sequence[Result]) -> str:
    arms = list(dict.fromkeys(arm for result in results for arm in result.scores))
    header = ("task", "documents", *arms, "gap recovered", "steered", "changed", "harness")
    rows = [
        (
            result.task,
            result.documents,
            *(f"{result.scores[arm]:.1%}" if arm in result.scores else "-" for arm in arms),
            gap(result),
            f"{result.steered_fraction:.1%}",
            f"{result.changed_fraction:.1%}",
            result.harness_version,
        )
        for result in results
    ]
    return _table(header, rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: object) -> str:
    # A cell is one line, and a bar in it would end it.
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|")


def _series(values: Iterable[str]) -> str:
    return ", ".join(values)
