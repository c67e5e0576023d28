"""HFLM around a model whose weights are on a server: the harness finds tokenizer and configuration where it looks.

What it has of the model is the skeleton that nnsight builds, without weights; nothing runs here.
"""

from typing import Any

from transformers import AutoTokenizer

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.models.ndif.client import Server
from lm_eval_hybrid.models.ndif.model import NdifModel
from lm_eval_hybrid.models.sources import Source

ROWS = 8
"""Documents in flight where the harness is told `auto`: the server's memory is not seen from here."""

# Arguments of HFLM that mean something for a model that is not loaded here.
_MEANT = {
    "add_bos_token",
    "batch_size",
    "chat_template_args",
    "max_batch_size",
    "max_gen_toks",
    "max_length",
    "prefix_token_id",
    "trust_remote_code",
}
# Those that are the same whatever is asked for, or that the harness itself gives.
_WITHOUT_EFFECT = {"device", "dtype", "logits_cache"}


def remote_model(source: Source, server: Server, tokenizer: str | None, theirs: dict[str, Any]) -> NdifModel:
    """A source's model on the server.

    Args:
        tokenizer: to use instead of the model's own.
        theirs: arguments of HFLM.

    Raises:
        HybridError: for arguments that the server would have to honour, or whatever keeps it from serving the model.
    """
    if unfit := sorted(set(theirs) - _MEANT - _WITHOUT_EFFECT - {"tokenizer"}):
        raise HybridError(
            f"a remote model takes no argument {unfit[0]}; found {unfit[0]}={theirs[unfit[0]]}; leave it out: how the "
            "model is loaded is the server's"
        )
    trust = bool(theirs.get("trust_remote_code"))
    with source.loading(needs_tokenizer=tokenizer is None):
        words = AutoTokenizer.from_pretrained(
            tokenizer or source.name, revision=None if tokenizer else source.revision, trust_remote_code=trust
        )
        # The server has one revision of a model unless asked for another.
        revision = None if source.revision == "main" else source.revision
        return NdifModel.at(server, source.name, revision, words, source.role, trust)


def as_hflm(model: NdifModel, theirs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that HFLM is made with around it."""
    kept = {name: value for name, value in theirs.items() if name in _MEANT}
    return {"pretrained": model.skeleton, "tokenizer": model.tokenizer, **kept}
