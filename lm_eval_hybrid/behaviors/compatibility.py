"""Whether a bundle fits the models that are loaded, judged from their configurations and tokenizers.

Vectors of one width cannot be added to a residual stream of another, and a layer must exist to be steered;
these are errors. Beyond that a bundle may be tried on related models; the level says how related they are.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Literal

from lm_eval_hybrid.behaviors.manifest import ModelCard
from lm_eval_hybrid.errors import HybridError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from lm_eval_hybrid.behaviors.bundle import Bundle

Level = Literal["exact", "architecture", "width"]
_LEVELS: tuple[Level, ...] = ("exact", "architecture", "width")  # strongest first


def check(
    bundle: Bundle,
    base_config: PretrainedConfig,
    thinking_config: PretrainedConfig | None,
    base_tokenizer: PreTrainedTokenizerBase | None = None,
    thinking_tokenizer: PreTrainedTokenizerBase | None = None,
) -> Level:
    """How well the loaded models match those the bundle was made with; the weaker of the two models counts.

    exact: architecture, width, number of layers and, where tokenizers are given, vocabulary are the bundle's
    (weights are not compared). architecture: architecture and width are. width: only the widths are. A
    thinking model of None (an arm that does not run one) is not compared.

    Raises HybridError where a width differs or the hook layer does not exist.
    """
    manifest = bundle.manifest
    levels = [_level("base", manifest.base, manifest.steering.layer, base_config, base_tokenizer)]
    if thinking_config is not None:
        layer = manifest.sae.layer
        levels.append(_level("thinking", manifest.thinking, layer, thinking_config, thinking_tokenizer))
    return max(levels, key=_LEVELS.index)


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


def _level(
    role: str,
    card: ModelCard,
    layer: int,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Level:
    text = config.get_text_config()  # the language model's part of a multimodal configuration
    if text.hidden_size != card.hidden_size:
        raise HybridError(
            f"the bundle requires a {role} model of hidden size {card.hidden_size} (made with {card.id}); "
            f"found {text.hidden_size}; load {card.id}, or use a bundle made for this model"
        )
    if layer >= text.num_hidden_layers:
        raise HybridError(
            f"the bundle requires layer {layer} of the {role} model (of {card.layers}, in {card.id}); "
            f"found {text.num_hidden_layers} layers; load {card.id}, or use a bundle made for this model"
        )
    # A model built in code knows its type but not its class.
    if card.architecture not in {config.model_type, text.model_type, *(config.architectures or ())}:
        return "width"
    same_vocabulary = tokenizer is None or tokenizer_digest(tokenizer) == card.tokenizer_sha256
    return "exact" if text.num_hidden_layers == card.layers and same_vocabulary else "architecture"
