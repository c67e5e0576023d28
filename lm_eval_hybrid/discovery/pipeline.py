"""Traces -> sentences -> activations -> SAE -> vectors -> bundle."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_hybrid import __version__
from lm_eval_hybrid.backends.local import LocalBackend
from lm_eval_hybrid.behaviors.bundle import Bundle
from lm_eval_hybrid.behaviors.compatibility import model_card
from lm_eval_hybrid.behaviors.manifest import Manifest, Prompt, Steering, Training
from lm_eval_hybrid.behaviors.manifest import Sae as SaeCard
from lm_eval_hybrid.discovery import naming, sae, vectors
from lm_eval_hybrid.discovery.activations import ReadTrace, read
from lm_eval_hybrid.discovery.recipe import Recipe
from lm_eval_hybrid.discovery.sae import Sae
from lm_eval_hybrid.discovery.traces import Trace, digest
from lm_eval_hybrid.errors import HybridError

log = logging.getLogger(__name__)


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
) -> Bundle:
    """Finds the behaviors in `traces` and fits their vectors to the frozen base; the bundle is not saved yet.

    Raises:
        HybridError: where the two vocabularies differ, or there are too few sentences.
    """
    if base.tokenizer.get_vocab() != thinking.tokenizer.get_vocab():
        raise HybridError(
            "discovery needs models that share their vocabulary; found two different ones; choose another pair"
        )
    torch.manual_seed(recipe.seed)
    some = split(read(thinking, base, traces, recipe.sae.layer), recipe.holdout)
    sentences = [sentence.text for trace in some.learned for sentence in trace.sentences]
    if len(sentences) < recipe.sae.latents:
        raise HybridError(
            f"discovery needs at least {recipe.sae.latents} sentences, one for each latent; found {len(sentences)} in "
            f"{len(some.learned)} traces; give more or longer traces"
        )
    onsets = torch.cat([trace.onsets() for trace in some.learned])
    log.info("training the sparse autoencoder on %d sentences", len(sentences))
    found = sae.train(onsets, recipe.sae, recipe.seed)
    bias, rows = vectors.fit(base, found.encoder, some.learned, recipe.vectors, recipe.seed)
    behaviors = naming.name(sentences, found.codes(onsets))
    card = Manifest(
        name=name,
        version=version,
        description=recipe.description,
        license=recipe.license,
        authors=recipe.authors,
        citation=recipe.citation,
        base=model_card(recipe.base, base.config, base.tokenizer),
        thinking=model_card(recipe.thinking, thinking.config, thinking.tokenizer),
        steering=Steering(
            layer=recipe.vectors.layer,
            coefficients=recipe.coefficients,
            windows=recipe.windows,
            gate_rate=round(gate_rate(some.held_out), 4),
        ),
        sae=SaeCard(layer=recipe.sae.layer, latents=recipe.sae.latents, k=recipe.sae.k),
        behaviors=behaviors,
        prompt=Prompt(thinking="raw"),
        training=Training(
            recipe=recipe.model_dump_json(),
            seed=recipe.seed,
            code_version=__version__,
            data=f"{len(traces)} traces of {recipe.thinking} on prompts {recipe.prompts}",
            data_sha256=digest(traces),
            holdout=measure(base, found, some.held_out, recipe.vectors.layer, bias, rows),
        ),
    )
    return Bundle(card, _tensors(found, bias, rows, card))


def split(traces: Sequence[ReadTrace], holdout: float) -> Split:
    """The last `holdout` share of the traces, at least one, is held out."""
    count = max(1, round(holdout * len(traces)))
    return Split(tuple(traces[:-count]), tuple(traces[-count:]))


def gate_rate(traces: Sequence[ReadTrace]) -> float:
    """Share of the traces' own tokens, the end token included, at which the two models disagree."""
    return sum(len(trace.gates()) for trace in traces) / sum(len(trace.ids) - trace.begin for trace in traces)


def measure(
    base: LocalBackend, found: Sae, traces: Sequence[ReadTrace], layer: int, bias: Tensor, rows: Tensor
) -> dict[str, float]:
    """The manifest's held-out figures: what the SAE explains, and how often steering yields the thinking token."""
    onsets = torch.cat([trace.onsets() for trace in traces])
    hits = vectors.hit_rates(base, found.encoder, traces, layer, bias, rows)
    figures = {"explained_variance": found.explained(onsets), "gate_rate": gate_rate(traces)}
    figures |= {"hit_rate_bias_only": hits["bias"], "hit_rate": hits["vectors"]}
    return {key: round(value, 4) for key, value in figures.items()}


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
