"""Whether a bundle fits the models that are loaded, judged from their configurations and tokenizers.

Vectors of one width cannot be added to a residual stream of another, and a layer must exist to be steered;
these are errors. Beyond that a bundle may be tried on related models; the level says how related they are, and
`strict` how related they must be.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lm_eval_hybrid.bundles.manifest import Manifest, ModelCard
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

Level = Literal["exact", "architecture", "width"]
LEVELS: tuple[Level, ...] = ("exact", "architecture", "width")  # strongest first


@dataclass(frozen=True)
class Match:
    """How well models fit a bundle, and each way in which they are not the ones that it was made with."""

    level: Level
    differences: tuple[str, ...] = ()


def check(
    manifest: Manifest,
    base_config: PretrainedConfig,
    thinking_config: PretrainedConfig | None,
    base_tokenizer: PreTrainedTokenizerBase | None = None,
    thinking_tokenizer: PreTrainedTokenizerBase | None = None,
    strict: Level = "width",
) -> Match:
    """How well the loaded models match those the bundle was made with; the weaker of the two models counts.

    exact: architecture, width, number of layers and, where tokenizers are given, vocabulary are the bundle's
    (weights are not compared). architecture: architecture and width are. width: only the widths are. What the
    bundle leaves open is not known to be the same. A thinking model of None (an arm that does not run one) is not
    compared.

    Raises HybridError where a width differs, the hook layer does not exist, or the level is weaker than `strict`.
    """
    found = [_match("base", manifest.base, manifest.steering.layer, base_config, base_tokenizer)]
    if thinking_config is not None:
        found.append(_match("thinking", manifest.thinking, manifest.sae.layer, thinking_config, thinking_tokenizer))
    level = max((match.level for match in found), key=LEVELS.index)
    differences = tuple(difference for match in found for difference in match.differences)
    if LEVELS.index(level) > LEVELS.index(strict):
        raise HybridError(
            f"strict={strict} requires models of the bundle's {_MEANING[strict]}; found {'; '.join(differences)}; "
            f"load the bundle's models ({manifest.base.id}, {manifest.thinking.id}), or say strict={level}"
        )
    return Match(level, differences)


def model_card(
    id: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, revision: str | None = None
) -> ModelCard:
    """The card of a loaded model, which `check` calls an exact match of the same one."""
    text = config.get_text_config()
    return ModelCard(
        id=id,
        revision=revision,
        architecture=(config.architectures or [config.model_type])[0],
        hidden_size=text.hidden_size,
        layers=text.num_hidden_layers,
        tokenizer_sha256=tokenizer_digest(tokenizer),
    )


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 (hex) of the vocabulary: the sorted (token, id) pairs of `get_vocab()`, as ASCII JSON."""
    pairs = json.dumps(sorted(tokenizer.get_vocab().items()), separators=(",", ":"))
    return hashlib.sha256(pairs.encode()).hexdigest()


_MEANING: dict[Level, str] = {
    "exact": "architecture, layers and vocabulary",
    "architecture": "architecture",
    "width": "width",
}


def _match(
    role: str,
    card: ModelCard,
    layer: int,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Match:
    text = config.get_text_config()  # the language model's part of a multimodal configuration
    if text.hidden_size != card.hidden_size:
        raise HybridError(
            f"the bundle requires a {role} model of hidden size {card.hidden_size} (made with {card.id}); "
            f"found {text.hidden_size}; load {card.id}, or use a bundle made for this model"
        )
    if layer >= text.num_hidden_layers:
        of = "" if card.layers is None else f" of {card.layers}"
        raise HybridError(
            f"the bundle requires layer {layer} of the {role} model ({card.id}, layers from 0{of}); "
            f"found {text.num_hidden_layers} layers; load {card.id}, or use a bundle made for this model"
        )
    # A model built in code knows its type but not its class.
    names = (*(config.architectures or ()), config.model_type, text.model_type)
    same_kind = card.architecture in names
    vocabulary = card.tokenizer_sha256 if tokenizer is None else tokenizer_digest(tokenizer)
    facts = (
        ("architecture", card.architecture, card.architecture if same_kind else names[0]),
        ("layers", card.layers, text.num_hidden_layers),
        ("vocabulary", _short(card.tokenizer_sha256), _short(vocabulary)),
    )
    differences = tuple(
        f"{role} {what} {found}, where the bundle {'does not say' if made is None else f'has {made}'}"
        for what, made, found in facts
        if made is None or found != made
    )
    if not differences:
        return Match("exact")
    return Match("architecture" if same_kind else "width", differences)


def _short(digest: str | None) -> str | None:
    return digest and digest[:12]
