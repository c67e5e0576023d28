"""Model cards, and whether a bundle fits the loaded models, by their configurations and tokenizers.

A vector of one width cannot be added to a residual stream of another, and a layer must exist to be steered: anything
else is an error. Beyond that a bundle may be tried on related models; the level says how closely they are related.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from lm_eval_hybrid.bundles.manifest import Manifest, ModelCard, first_problem
from lm_eval_hybrid.common import paths
from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

Level = Literal["exact", "architecture", "width"]
LEVELS: tuple[Level, ...] = ("exact", "architecture", "width")  # closest first
_MEANING: dict[Level, str] = {
    "exact": "architecture, layers and vocabulary",
    "architecture": "architecture",
    "width": "width",
}
_HUB_TIMEOUT = 10  # seconds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelMatch:
    """How closely models match a bundle's, and each difference between them."""

    level: Level
    differences: tuple[str, ...] = ()


def check(
    manifest: Manifest,
    base_config: PretrainedConfig,
    thinking_config: PretrainedConfig | None,
    base_tokenizer: PreTrainedTokenizerBase | None = None,
    thinking_tokenizer: PreTrainedTokenizerBase | None = None,
    strict: Level = "width",
) -> ModelMatch:
    """How closely the loaded models match the bundle's; the less close of the two counts.

    exact: same architecture, width, number of layers and, if tokenizers are given, vocabulary (weights are not
    compared). architecture: same architecture and width. width: same width. A fact that the bundle leaves open counts
    as different. A thinking model of None (the arm runs none) is not compared.

    Raises HybridError if a width differs, a steered or read layer does not exist, or the level is below `strict`.
    """
    matches = [_match("base", manifest.base, manifest.steering.layer, base_config, base_tokenizer)]
    if thinking_config is not None:
        matches.append(_match("thinking", manifest.thinking, manifest.sae.layer, thinking_config, thinking_tokenizer))
    level = max((match.level for match in matches), key=LEVELS.index)
    differences = tuple(difference for match in matches for difference in match.differences)
    if LEVELS.index(level) > LEVELS.index(strict):
        needed = f"strict={strict} needs the same {_MEANING[strict]}"
        advice = f"load {manifest.base.id} and {manifest.thinking.id}, or set strict={level}"
        raise HybridError(f"models differ from the bundle's: {'; '.join(differences)}; {needed}; {advice}")
    return ModelMatch(level, differences)


def model_card(
    id: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, revision: str | None = None
) -> ModelCard:
    """The card of a loaded model; `check` calls the same model an exact match."""
    text = config.get_text_config()
    return ModelCard(
        id=id,
        revision=revision,
        architecture=(config.architectures or [config.model_type])[0],
        hidden_size=text.hidden_size,
        layers=text.num_hidden_layers,
        tokenizer_sha256=tokenizer_digest(tokenizer),
    )


def card_by_id(role: str, id: str, hidden_size: int | None = None) -> ModelCard:
    """The card of a model that is not loaded, by hub id or folder, as far as it can be known.

    Its configuration is read from the folder, the hub's cache, or the hub (unless HF_HUB_OFFLINE=1). If there is none,
    the card has id and width alone, and a warning is logged.

    Args:
        role: `base` or `thinking`, for errors.
        hidden_size: width of the tensors that must fit the model; None if only the model can tell.

    Raises HybridError if the model has another width, or the width is unknown.
    """
    found = _look_up(id)
    if found is None and hidden_size is None:
        needed = f"the width of the {role} model is needed"
        raise HybridError(f"{id}: no configuration here or on the hub; {needed}; give a folder that has one")
    if found is None:
        log.warning("%s: no configuration at hand; its layers and vocabulary stay unknown in the bundle", id)
        try:
            return ModelCard.model_validate({"id": id, "hidden_size": hidden_size})
        except ValidationError as error:
            raise HybridError(f"the {role} model: {first_problem(error)}; name another, or other vectors") from None
    if hidden_size not in (None, found.hidden_size):
        needed = f"the {role} model must have the vectors' width, {hidden_size}"
        raise HybridError(f"{id} has width {found.hidden_size}; {needed}; name the model that they were made with")
    return found


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 (hex) of the vocabulary: the sorted (token, id) pairs of `get_vocab()`, as ASCII JSON."""
    pairs = json.dumps(sorted(tokenizer.get_vocab().items()), separators=(",", ":"))
    return hashlib.sha256(pairs.encode()).hexdigest()


def _match(
    role: str, card: ModelCard, layer: int, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None
) -> ModelMatch:
    text = config.get_text_config()  # the language model's part of a multimodal configuration
    advice = f"load {card.id}, or use a bundle made for this model"
    if text.hidden_size != card.hidden_size:
        needed = f"the bundle, made with {card.id}, needs {card.hidden_size}"
        raise HybridError(f"the {role} model has hidden size {text.hidden_size}; {needed}; {advice}")
    if layer >= text.num_hidden_layers:
        of = "" if card.layers is None else f" of {card.layers}"
        needed = f"the bundle, made with {card.id}, needs layer {layer}{of} (from 0)"
        raise HybridError(f"the {role} model has {text.num_hidden_layers} layers; {needed}; {advice}")
    # A model built in code knows its type but not its class.
    names = (*(config.architectures or ()), config.model_type, text.model_type)
    same_kind = card.architecture in names
    vocabulary = card.tokenizer_sha256 if tokenizer is None else tokenizer_digest(tokenizer)
    facts = (
        ("architecture", card.architecture, card.architecture if same_kind else names[0]),
        ("layers", card.layers, text.num_hidden_layers),
        ("vocabulary", card.tokenizer_sha256 and card.tokenizer_sha256[:12], vocabulary and vocabulary[:12]),
    )
    differences = tuple(
        f"{role} {what} {found} ({'unknown' if made is None else made} in the bundle)"
        for what, made, found in facts
        if made is None or found != made
    )
    if not differences:
        return ModelMatch("exact")
    return ModelMatch("architecture" if same_kind else "width", differences)


@functools.cache
def _look_up(id: str) -> ModelCard | None:
    from transformers import AutoConfig, AutoTokenizer

    name = paths.model_path(id)
    for local in (True, False):  # a model that is already here costs no request
        if not local and not _on_hub(name):
            break
        try:
            config = AutoConfig.from_pretrained(name, local_files_only=local, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local, trust_remote_code=False)
        # transformers fails in many ways: no network, no such model, remote code.
        except Exception as error:
            log.debug("%s: no configuration (local: %s): %s", id, local, error)
            continue
        return model_card(id, config, tokenizer, getattr(config, "_commit_hash", None))
    return None


def _on_hub(name: str) -> bool:
    """Whether the hub knows the model: one short request, where loading would retry for most of a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=_HUB_TIMEOUT)
    except Exception as error:
        log.debug("%s: the hub does not answer: %s", name, error)
        return False
    return True
