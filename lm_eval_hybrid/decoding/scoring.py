"""Log-likelihood of given text under the hybrid: read at once by both models, steered wherever the gate opens.

A round of decoding (`decoding/batch.py`) whose draft is given, and in which every opening counts, not the first alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.chooser import Place, present
from lm_eval_hybrid.decoding.draws import context_digest
from lm_eval_hybrid.decoding.ndif.scoring import RemoteBaseScorer, RemoteThinkingScorer
from lm_eval_hybrid.decoding.request import Prompt
from lm_eval_hybrid.decoding.scorers import (
    BaseScorer,
    LocalBaseScorer,
    LocalThinkingScorer,
    Text,
    ThinkingScorer,
    own_tokens,
)
from lm_eval_hybrid.decoding.system import System
from lm_eval_hybrid.decoding.views import BaseView, ThinkingView
from lm_eval_hybrid.models.ndif.model import NdifModel

PIECE = 64
"""Tokens of each text that are read at once: what is said after each is kept until all is scored."""

REMOTE_PIECE = 1024
"""The same where no model is in this process: a piece has all before it read again there."""

_PLACES = 64
"""Places steered at once: a row of logits is kept for each of their candidates."""

_REMOTE_PLACES = 16
"""The same where the base is on a server: each is a row of its own there."""


def score(
    system: System, prompts: Sequence[Prompt], continuations: Sequence[Sequence[int]]
) -> list[tuple[float, bool]]:
    """See `decoder.HybridDecoder.score`, which checks what is given here."""
    texts = [_text(system, *pair) for pair in zip(prompts, continuations, strict=True)]
    going = [text for text in texts if text.tokens]
    if not going:
        return [(text.logprob, text.greedy) for text in texts]
    size = PIECE if any(_is_here(model) for model in (system.base, system.thinking)) else REMOTE_PIECE
    base, thinking = _scorers(system, going, size)
    start = 0
    while going:
        _score_piece(system, base, thinking, going, start, size)
        start += size
        kept = [i for i, text in enumerate(going) if len(text.tokens) > start]
        if 0 < len(kept) < len(going):
            for scorer in (base, thinking):
                if scorer is not None:
                    scorer.select(kept)
        going = [going[i] for i in kept]
    return [(text.logprob, text.greedy) for text in texts]


def _is_here(model: object) -> bool:
    return model is not None and not isinstance(model, NdifModel)


def _text(system: System, prompt: Prompt, tokens: Sequence[int]) -> Text:
    crossings = [system.shown(token) for token in tokens[:-1]]
    if lost := [token for token, ids in zip(tokens, crossings, strict=False) if not ids]:
        raise HybridError(
            f"each token must be known to the thinking model; found base ids {lost}, which it has no way to write; "
            "use a pair with one vocabulary"
        )
    return Text(prompt, tokens, crossings, context_digest(prompt.base_ids))


def _scorers(system: System, texts: Sequence[Text], ahead: int) -> tuple[BaseScorer | None, ThinkingScorer | None]:
    """Both models, wherever they are, before their first piece."""
    base: BaseScorer | None = None
    thinking: ThinkingScorer | None = None
    if isinstance(system.base, NdifModel):
        base = RemoteBaseScorer(system, system.base)
    elif system.base is not None:
        base = LocalBaseScorer(system, texts, ahead)
    if isinstance(system.thinking, NdifModel):
        thinking = RemoteThinkingScorer(system, system.thinking)
    elif system.thinking is not None:
        thinking = LocalThinkingScorer(system, texts, ahead)
    return base, thinking


def _score_piece(
    system: System,
    base: BaseScorer | None,
    thinking: ThinkingScorer | None,
    texts: Sequence[Text],
    start: int,
    size: int,
) -> None:
    """Add to every text what is said of its tokens from `start` on, up to `size` of them."""
    counts = [len(text.tokens[start : start + size]) for text in texts]
    # [rows, k], on the CPU: of what each token's place says. Where nothing steers, the base.
    logprobs, chosen = torch.zeros(len(texts), max(counts)), torch.full((len(texts), max(counts)), -1)
    base_view = view = None
    if base is not None:
        logprobs, base_view = base.read(texts, start, size)
        chosen = base_view.choice.cpu()
    if thinking is not None:
        view = thinking.read(texts, start, size, base_view)
    places = _places(system, base_view, view, texts, counts, start)
    most = _REMOTE_PLACES if isinstance(system.base, NdifModel) else _PLACES
    for i in range(0, len(places), most):
        some = places[i : i + most]
        rows, steps = [place.row for place in some], [place.step for place in some]
        logprobs[rows, steps], chosen[rows, steps] = _opened(system, base, base_view, view, texts, some)
    for text, count, row, tokens in zip(texts, counts, logprobs.double(), chosen.tolist(), strict=True):
        text.logprob += float(row[:count].sum())
        text.greedy &= tokens[:count] == list(text.tokens[start : start + count])


def _places(
    system: System,
    base: BaseView | None,
    thinking: ThinkingView | None,
    texts: Sequence[Text],
    counts: Sequence[int],
    start: int,
) -> list[Place]:
    """Everywhere the gate opens."""
    differ = system.chooser.differ(base, thinking).tolist() if base is not None and thinking is not None else None
    places = []
    for row, (text, count) in enumerate(zip(texts, counts, strict=True)):
        for step in range(count):
            opens = system.chooser.opens_unseen(start + step, text.key)
            if present(differ)[row][step] if opens is None else opens:
                column = len(text.prompt.base_ids) - 1 + start + step
                places.append(Place(row, step, column, start + step, text.key))
    return places


def _opened(
    system: System,
    base: BaseScorer | None,
    base_view: BaseView | None,
    view: ThinkingView | None,
    texts: Sequence[Text],
    places: Sequence[Place],
) -> tuple[Tensor, Tensor]:
    """At each place: log-probability of the text's token [n], and the token that would be chosen; on the CPU."""
    if not system.chooser.emits_thinking:
        return present(base).steer(texts, present(base_view), view, places)
    view = present(view)
    rows, steps = torch.tensor([(place.row, place.step) for place in places]).T
    logprobs = view.logprobs(rows, steps, own_tokens(texts, places)[:, None])[:, 0]
    return logprobs.cpu(), view.crossed.cpu()[rows, steps]
