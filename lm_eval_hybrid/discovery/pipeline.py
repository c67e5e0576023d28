"""Traces -> sentences -> activations -> SAE -> vectors -> bundle."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from lm_eval_hybrid import __version__
from lm_eval_hybrid.backends.local import LocalBackend
from lm_eval_hybrid.behaviors.bundle import Bundle
from lm_eval_hybrid.behaviors.compatibility import model_card
from lm_eval_hybrid.behaviors.manifest import Behavior, Manifest, ModelCard, Prompt, Steering, Training, first_problem
from lm_eval_hybrid.behaviors.manifest import Sae as SaeCard
from lm_eval_hybrid.discovery import naming, sae, vectors
from lm_eval_hybrid.discovery.activations import ReadTrace, read
from lm_eval_hybrid.discovery.recipe import Recipe
from lm_eval_hybrid.discovery.sae import Sae
from lm_eval_hybrid.discovery.store import collect
from lm_eval_hybrid.discovery.traces import Trace, digest
from lm_eval_hybrid.errors import HybridError

log = logging.getLogger(__name__)
_UNKNOWN = Behavior(key="latent-0", latent=0, title="Latent 0", description="", examples=(), tensor="vector.latent-0")


@dataclass(frozen=True)
class Split:
    """Traces to learn from, and others to measure on."""

    learned: tuple[ReadTrace, ...]
    held_out: tuple[ReadTrace, ...]


def discover(
    base: LocalBackend,
    thinking: LocalBackend,
    traces: Sequence[Trace],
    recipe: Recipe,
    name: str,
    version: str,
    work: Path,
    samples: Sequence[Path] = (),
) -> Bundle:
    """Finds the behaviors in `traces` and fits their vectors to the frozen base; the bundle is not saved yet.

    Args:
        work: folder that keeps the sentences' activations, so that a run resumes.
        samples: the harness's samples files that the traces are from, where they are not of the recipe's prompts.

    Raises:
        HybridError: see `check`; or where the traces are too few or too short, or the models agree on all of them.
    """
    card = check(base, thinking, recipe, name, version)
    if len(traces) < 2:
        raise HybridError(f"discovery needs traces to learn from and to measure on; found {len(traces)}; give more")
    torch.manual_seed(recipe.seed)
    layer = recipe.sae.layer
    store = collect(work / "activations", thinking, traces, [layer])
    some = split(read(thinking, base, traces, layer), recipe.holdout)
    _require("to learn from", some.learned, recipe.sae.latents)
    _require("held out", some.held_out, 2)  # the variance of one is none
    sentences = [sentence.text for trace in some.learned for sentence in trace.sentences]
    learned = store.sentences()[:, 0] < len(some.learned)
    onsets = store.onsets(layer)
    onsets, others = onsets[learned], onsets[~learned]
    log.info("training the sparse autoencoder on %d sentences", len(sentences))
    found = sae.train(onsets, recipe.sae, recipe.seed)
    bias, rows = vectors.fit(base, found.encoder, some.learned, recipe.vectors, recipe.seed)
    source = f"in {', '.join(path.name for path in samples)}" if samples else f"on prompts {recipe.prompts}"
    training = {
        "data": f"{len(traces)} traces of {recipe.thinking} {source}",
        "data_sha256": digest(traces),
        "holdout": measure(base, found, some.held_out, others, recipe.vectors.layer, bias, rows),
    }
    parts = {
        "steering": Steering(**dict(card.steering) | {"gate_rate": round(gate_rate(some.held_out), 4)}),
        "behaviors": naming.name(sentences, found.codes(onsets)),
        "training": Training(**dict(card.training) | training),
    }
    card = Manifest(**dict(card) | parts)
    return Bundle(card, _tensors(found, bias, rows, card))


def check(base: LocalBackend, thinking: LocalBackend, recipe: Recipe, name: str, version: str) -> Manifest:
    """The bundle's manifest, as far as it is known before the work; what will be found has stand-ins.

    Raises:
        HybridError: where the two vocabularies differ, a model lacks a layer, or a bundle cannot have that name.
    """
    if base.tokenizer.get_vocab() != thinking.tokenizer.get_vocab():
        raise HybridError(
            "discovery needs models that share their vocabulary; found two different ones; choose another pair"
        )
    try:
        return Manifest(
            name=name,
            version=version,
            description=recipe.description,
            license=recipe.license,
            authors=recipe.authors,
            citation=recipe.citation,
            base=_model(recipe.base, base),
            thinking=_model(recipe.thinking, thinking),
            steering=Steering(layer=recipe.vectors.layer, coefficients=recipe.coefficients, windows=recipe.windows),
            sae=SaeCard(layer=recipe.sae.layer, latents=recipe.sae.latents, k=recipe.sae.k),
            behaviors=(_UNKNOWN,),
            prompt=Prompt(thinking="raw"),
            training=Training(
                recipe=recipe.model_dump_json(),
                seed=recipe.seed,
                code_version=__version__,
                data="none yet",
                data_sha256="0" * 64,
                holdout={},
            ),
        )
    except ValidationError as error:
        raise HybridError(f"{name}/{version}: {first_problem(error)}; mend the recipe, or --out NAME/VERSION") from None


def split(traces: Sequence[ReadTrace], holdout: float) -> Split:
    """The last `holdout` share of two or more traces is held out; each side has at least one."""
    count = min(max(1, round(holdout * len(traces))), len(traces) - 1)
    return Split(tuple(traces[:-count]), tuple(traces[-count:]))


def gate_rate(traces: Sequence[ReadTrace]) -> float:
    """Share of the traces' own tokens, the end token included, at which the two models disagree."""
    return sum(len(trace.gates()) for trace in traces) / sum(len(trace.ids) - trace.begin for trace in traces)


def measure(
    base: LocalBackend,
    found: Sae,
    traces: Sequence[ReadTrace],
    onsets: Tensor,
    layer: int,
    bias: Tensor,
    rows: Tensor,
) -> dict[str, float]:
    """The manifest's held-out figures: what the SAE explains, and how often steering yields the thinking token.

    Args:
        onsets: [sentences, d_thinking], of the traces.
    """
    hits = vectors.hit_rates(base, found.encoder, traces, layer, bias, rows)
    figures = {"explained_variance": found.explained(onsets), "gate_rate": gate_rate(traces)}
    figures |= {"hit_rate_bias_only": hits["bias"], "hit_rate": hits["vectors"]}
    return {key: round(value, 4) for key, value in figures.items()}


def _require(role: str, traces: Sequence[ReadTrace], sentences: int) -> None:
    count = sum(len(trace.sentences) for trace in traces)
    if count < sentences:
        raise HybridError(
            f"the traces {role} must have at least {sentences} sentences; found {count} in {len(traces)} traces; "
            "give more or longer traces"
        )
    if not any(len(trace.gates()) for trace in traces):
        raise HybridError(
            f"the two models must disagree somewhere in the traces {role}; found no disagreement in {len(traces)} "
            "traces; choose another pair, or give more traces"
        )


def _model(id: str, backend: LocalBackend) -> ModelCard:
    revision = getattr(backend.config, "_commit_hash", None)  # of a model from the hub
    return model_card(id, backend.config, backend.tokenizer, revision)


def _tensors(found: Sae, bias: Tensor, rows: Tensor, card: Manifest) -> dict[str, Tensor]:
    encoder = found.encoder
    return {
        "bias": bias,
        **{behavior.tensor: rows[behavior.latent] for behavior in card.behaviors},
        "sae.encoder.weight": encoder.weight,
        "sae.encoder.bias": encoder.bias,
        "sae.decoder.weight": found.decoder,
        "sae.decoder.bias": encoder.decoder_bias,
        "sae.mean": encoder.mean,
    }
