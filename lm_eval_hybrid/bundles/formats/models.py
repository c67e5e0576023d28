"""What can be known of a model without its weights: from its configuration and tokenizer, where they are at hand."""

import functools
import logging
from pathlib import Path

from pydantic import ValidationError

from lm_eval_hybrid.bundles.compatibility import model_card
from lm_eval_hybrid.bundles.manifest import ModelCard, first_problem
from lm_eval_hybrid.common import paths
from lm_eval_hybrid.common.errors import HybridError

log = logging.getLogger(__name__)
_EMBEDDED = "embedded:"
_PATIENCE = 10  # seconds


def card(role: str, id: str, hidden_size: int | None = None) -> ModelCard:
    """The card of a model by hub id or folder, as far as it can be known here.

    Read from a folder, the hub's cache, or, unless it is off (HF_HUB_OFFLINE=1), the hub. A model that cannot be read
    gets a card of its id and width alone, and a warning says so.

    Args:
        role: `base` or `thinking`, for messages.
        hidden_size: of the tensors that are to fit it; None where only the model can say.

    Raises:
        HybridError: where the model has another width, or the width is needed and cannot be known.
    """
    found = _look_up(id)
    if found is None and hidden_size is None:
        raise HybridError(
            f"the width of the {role} model is needed; found no configuration of {id} here or on the hub; "
            "give a folder that has it"
        )
    if found is None:
        log.warning("no configuration of %s at hand: its layers and vocabulary are left open in the bundle", id)
        try:
            return ModelCard(id=id, hidden_size=hidden_size)
        except ValidationError as error:
            raise HybridError(f"the {role} model: {first_problem(error)}; name another, or other vectors") from None
    if hidden_size is not None and found.hidden_size != hidden_size:
        raise HybridError(
            f"the {role} model must have the vectors' width, {hidden_size}; found {found.hidden_size} in {id}; "
            f"name the model that they were made with"
        )
    return found


@functools.cache
def _look_up(id: str) -> ModelCard | None:
    from transformers import AutoConfig, AutoTokenizer

    embedded = id.startswith(_EMBEDDED)
    name = str(paths.embedded_dir() / id.removeprefix(_EMBEDDED)) if embedded else str(Path(id).expanduser())
    for here in (True, False):  # a model that is here costs no request
        if not here and not _on_hub(name):
            break
        try:
            config = AutoConfig.from_pretrained(name, local_files_only=here, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=here, trust_remote_code=False)
        # Whatever keeps transformers from reading them: no network, no such model, code that it would have to run.
        except Exception as error:
            log.debug("no configuration of %s (local: %s): %s", id, here, error)
            continue
        return model_card(id, config, tokenizer, getattr(config, "_commit_hash", None))
    return None


def _on_hub(name: str) -> bool:
    """Whether the hub answers for it: asked once, where loading would ask again and again for most of a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=_PATIENCE)
    except Exception as error:
        log.debug("the hub does not answer for %s: %s", name, error)
        return False
    return True
