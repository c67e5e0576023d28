"""Log-likelihood of given text under the hybrid: read at once by both models, steered wherever the gate opens.

A round of decoding (`decoding/batch.py`) whose draft is given, and in which every opening counts, not the first alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_hybrid.backends.protocol import Sequences
from lm_eval_hybrid.decoding.choosing import Place, present
from lm_eval_hybrid.decoding.draws import context_digest
from lm_eval_hybrid.decoding.request import Prompt
from lm_eval_hybrid.decoding.system import System
from lm_eval_hybrid.decoding.views import BaseView, ThinkingView, read_thinking
from lm_eval_hybrid.errors import HybridError

PIECE = 64
"""Tokens of each text that are read at once: what is said after each is kept until all is scored."""

_PLACES = 64
"""Places steered at once: a row of logits is kept for each of their candidates."""


@dataclass
class _Text:
    """A continuation, and what has been found of it.

    Attributes:
        read: the last token of the prompt, and the continuation but for its last token, as the models read them:
            what is said after the i-th is of tokens[i].
    """

    prompt: Prompt
    tokens: Sequence[int]
    read: list[int]
    crossings: list[Sequence[int]]
    key: bytes
    logprob: float = 0.0
    greedy: bool = True


def score(
    system: System, prompts: Sequence[Prompt], continuations: Sequence[Sequence[int]]
) -> list[tuple[float, bool]]:
    """See `decoder.HybridDecoder.score`, which checks what is given here."""
    texts = [_text(system, *pair) for pair in zip(prompts, continuations, strict=True)]
    going = [text for text in texts if text.tokens]
    base, thinking = _opened(system, going)
    start = 0
    while going:
        _score_piece(system, base, thinking, going, start)
        start += PIECE
        kept = [i for i, text in enumerate(going) if len(text.tokens) > start]
        if 0 < len(kept) < len(going):
            for sequences in (base, thinking):
                if sequences is not None:
                    sequences.keep(kept)
        going = [going[i] for i in kept]
    return [(text.logprob, text.greedy) for text in texts]


def _text(system: System, prompt: Prompt, tokens: Sequence[int]) -> _Text:
    crossings = [system.shown(token) for token in tokens[:-1]]
    if lost := [token for token, ids in zip(tokens, crossings, strict=False) if not ids]:
        raise HybridError(
            f"each token must be known to the thinking model; found base ids {lost}, which it has no way to write; "
            "use a pair with one vocabulary"
        )
    return _Text(
        prompt,
        tokens,
        [*prompt.base_ids[-1:], *tokens[:-1]],
        [prompt.thinking_ids[-1:], *crossings],
        context_digest(prompt.base_ids),
    )


def _opened(system: System, texts: Sequence[_Text]) -> tuple[Sequences | None, Sequences | None]:
    """Both models with the prompts read, but for their last tokens. What several texts follow is read once."""
    if not texts:
        return None, None
    contexts = {(tuple(text.prompt.base_ids), tuple(text.prompt.thinking_ids)): 0 for text in texts}
    for i, context in enumerate(contexts):
        contexts[context] = i
    base = None if system.base is None else system.open_base(system.base, len(contexts), PIECE)
    thinking = None if system.thinking is None else system.open_thinking(system.thinking, len(contexts), PIECE)
    owners = [contexts[tuple(text.prompt.base_ids), tuple(text.prompt.thinking_ids)] for text in texts]
    for sequences, prompts in ((base, [ids for ids, _ in contexts]), (thinking, [ids for _, ids in contexts])):
        if sequences is not None:
            sequences.admit(range(len(contexts)), [ids[:-1] for ids in prompts])
            sequences.keep(owners)
    return base, thinking


def _score_piece(
    system: System, base: Sequences | None, thinking: Sequences | None, texts: Sequence[_Text], start: int
) -> None:
    """Add to every text what is said of its tokens from `start` on, up to PIECE of them."""
    pieces = [text.tokens[start : start + PIECE] for text in texts]
    width = max(map(len, pieces))
    said = base_view = view = None
    if base is not None:
        counts = [len(piece) for piece in pieces]
        read = [text.read[start : start + PIECE] for text in texts]
        reading = base.read(torch.tensor([row + [0] * (width - len(row)) for row in read]), counts)
        said = reading.logits
        base_view = BaseView.of(said, reading.residual, system.bridge)
    if thinking is not None:
        crossings = [text.crossings[start : start + PIECE] for text in texts]
        view, _ = read_thinking(thinking, crossings, present(system.bridge))
    # [rows, width], on the CPU: of what each token's place says. Where nothing steers, the base.
    forced = torch.tensor([[*piece, *[0] * (width - len(piece))] for piece in pieces])
    logprobs, chosen = torch.zeros(forced.shape), torch.full(forced.shape, -1)
    if said is not None and base_view is not None:
        there = forced.to(said.device)
        logprobs = torch.stack([_logprob(row, ids) for row, ids in zip(said, there, strict=True)]).cpu()
        chosen = base_view.choice.cpu()
    places = _places(system, base_view, view, texts, pieces, start)
    for i in range(0, len(places), _PLACES):
        some = places[i : i + _PLACES]
        rows, steps = [place.row for place in some], [place.step for place in some]
        logprobs[rows, steps], chosen[rows, steps] = _steered(system, base, base_view, view, some, forced[rows, steps])
    for text, piece, row, tokens in zip(texts, pieces, logprobs.double(), chosen.tolist(), strict=True):
        text.logprob += float(row[: len(piece)].sum())
        text.greedy &= tokens[: len(piece)] == list(piece)


def _places(
    system: System,
    base: BaseView | None,
    thinking: ThinkingView | None,
    texts: Sequence[_Text],
    pieces: Sequence[Sequence[int]],
    start: int,
) -> list[Place]:
    """Everywhere the gate opens."""
    differ = system.chooser.differ(base, thinking).tolist() if base is not None and thinking is not None else None
    places = []
    for row, (text, piece) in enumerate(zip(texts, pieces, strict=True)):
        for step in range(len(piece)):
            opens = system.chooser.opens_unseen(start + step, text.key)
            if present(differ)[row][step] if opens is None else opens:
                column = len(text.prompt.base_ids) - 1 + start + step
                places.append(Place(row, step, column, start + step, text.key))
    return places


def _steered(
    system: System,
    base: Sequences | None,
    base_view: BaseView | None,
    view: ThinkingView | None,
    places: Sequence[Place],
    forced: Tensor,
) -> tuple[Tensor, Tensor]:
    """At each place: log-probability of the forced token [n], and the token that would be chosen; on the CPU."""
    if system.chooser.emits_thinking:
        view = present(view)
        rows, steps = torch.tensor([(p.row, p.step) for p in places], device=view.total.device).T
        return view.logprobs(rows, steps, forced[:, None])[:, 0].cpu(), view.crossed[rows, steps].cpu()
    candidates = system.chooser.steer(present(base), present(base_view), view, places)
    return _logprob(
        present(candidates.logits), forced.to(present(candidates.logits).device)
    ).cpu(), candidates.token.cpu()


def _logprob(logits: Tensor, tokens: Tensor) -> Tensor:
    """[n, vocab] of any dtype, [n] int64 -> [n] float32."""
    return logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
