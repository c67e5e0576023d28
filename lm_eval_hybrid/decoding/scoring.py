"""Log-likelihood of given text under the hybrid: read at once by both models, steered wherever the gate opens.

A round of decoding (`batch`) whose draft is given, and in which every opening counts, not only the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.context import DecodingContext
from lm_eval_hybrid.decoding.request import Draft, Prompt, Request, Row
from lm_eval_hybrid.decoding.sides import Drafter, Verifier, open_sides
from lm_eval_hybrid.decoding.views import GatePosition, NoThinkingView, Views, index_of


@dataclass
class _Text:
    """A continuation, and its score so far.

    Attributes:
        row: the prompt, and the part that is scored.
        crossed: the ids that each token crosses as.
    """

    row: Row
    tokens: list[int]
    crossed: list[Sequence[int]]
    logprob: float = 0.0
    greedy: bool = True

    @property
    def prompt(self) -> tuple[tuple[int, ...], ...]:
        """What both models read before it."""
        return tuple(self.row.request.prompt.base_ids), tuple(self.row.request.prompt.thinking_ids)


def score(
    context: DecodingContext, prompts: Sequence[Prompt], continuations: Sequence[Sequence[int]]
) -> list[tuple[float, bool]]:
    """See `decoder.HybridDecoder.score`, which checks lengths."""
    pairs = zip(prompts, continuations, strict=True)
    texts = [_text(context, index, prompt, list(tokens)) for index, (prompt, tokens) in enumerate(pairs)]
    remaining = [text for text in texts if text.tokens]
    if remaining:
        # A prompt that several texts follow is read once, and its row duplicated.
        slots = {prompt: slot for slot, prompt in enumerate(dict.fromkeys(text.prompt for text in remaining))}
        firsts = {slots[text.prompt]: text.row for text in reversed(remaining)}
        drafter, verifier = open_sides(context, len(slots), scoring=True)
        sides = [drafter] if verifier is None else [drafter, verifier]
        for side in sides:
            side.insert(dict(sorted(firsts.items())))
            side.select([slots[text.prompt] for text in remaining])
        size = min(side.piece for side in sides)
    while remaining:
        _score_piece(context, drafter, verifier, remaining, size)
        kept = [i for i, text in enumerate(remaining) if len(text.tokens) > text.row.position]
        if 0 < len(kept) < len(remaining):
            for side in sides:
                side.select(kept)
        remaining = [remaining[i] for i in kept]
    return [(text.logprob, text.greedy) for text in texts]


def _text(context: DecodingContext, index: int, prompt: Prompt, tokens: list[int]) -> _Text:
    crossed = [context.cross(token) for token in tokens]
    # The last token is never read.
    if lost := [token for token, ids in zip(tokens[:-1], crossed, strict=False) if not ids]:
        raise HybridError(
            f"base ids {lost} cannot be written in the thinking model's vocabulary, which has to read them; use a pair "
            "with one vocabulary"
        )
    return _Text(context.row(index, Request(prompt, len(tokens))), tokens, crossed)


def _score_piece(
    context: DecodingContext, drafter: Drafter, verifier: Verifier | None, texts: Sequence[_Text], size: int
) -> None:
    """Add to every text the scores of its next tokens, up to `size` of them."""
    drafts = []
    for text in texts:
        piece = slice(text.row.position, text.row.position + size)
        tokens = text.tokens[piece]
        drafts.append(Draft(text.row, tokens, text.crossed[piece], len(tokens)))
    base = drafter.score(drafts)
    views = Views(base, NoThinkingView() if verifier is None else verifier.verify(drafts, base, every=True))
    # [rows, k] on the CPU: at first of the unsteered model.
    logprobs, chosen = base.drafted_logprob.cpu(), base.choice.cpu()
    positions = [
        GatePosition(i, step, draft)
        for i, (draft, opens) in enumerate(zip(drafts, context.gate.opens(views, drafts), strict=True))
        for step, opened in enumerate(opens)
        if opened
    ]
    for i in range(0, len(positions), drafter.steered_at_once):
        some = positions[i : i + drafter.steered_at_once]
        index = index_of(some, chosen.device)
        logprobs[index], chosen[index] = _score_opened(context, drafter, views, some)
    for text, draft, row, choices in zip(texts, drafts, logprobs.double(), chosen.tolist(), strict=True):
        text.logprob += float(row[: draft.length].sum())
        text.greedy &= choices[: draft.length] == draft.tokens
        text.row.thinking_read += draft.ends[-1]
        text.row.extend(draft.tokens, draft.crossed)


def _score_opened(
    context: DecodingContext, drafter: Drafter, views: Views, positions: Sequence[GatePosition]
) -> tuple[Tensor, Tensor]:
    """At positions where the gate opened: the log-probabilities of the given tokens, and what would be emitted."""
    if context.steerer is not None:
        logprobs, emitted = drafter.score_steered(context.steerer, views, positions)
    else:
        given = torch.tensor([[position.draft.tokens[position.step]] for position in positions])
        logprobs = views.thinking.logprobs(*index_of(positions, given.device), given)[:, 0].cpu()
        emitted = views.thinking.own_tokens(positions)
    return logprobs, torch.tensor(emitted)
