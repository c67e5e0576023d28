"""A thinking model on a server: one request reads all drafts of a round, or all texts that are scored."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from lm_eval_hybrid.decoding import views
from lm_eval_hybrid.decoding.context import DecodingContext, Verification
from lm_eval_hybrid.decoding.ndif.views import RemoteThinkingView
from lm_eval_hybrid.decoding.request import Draft, Row
from lm_eval_hybrid.decoding.views import BaseView, ThinkingView, check_not_nan
from lm_eval_hybrid.models.protocol import RemoteBackend

RowDraws = tuple[float, int, float, list[float]]
"""How consecutive tokens of a row are drawn: temperature, top_k, top_p, and a level for each; see `Sampling.draw`."""


def row_draws(row: Row, position: int, count: int) -> RowDraws | None:
    """How `count` generated tokens of a row are drawn from `position` on; None: greedily."""
    sampling = row.request.sampling
    if sampling is None:
        return None
    levels = [sampling.level(position + step, row.key) for step in range(count)]
    return sampling.temperature, sampling.top_k, sampling.top_p, levels


def scheduled(context: DecodingContext, position: int, key: bytes) -> int:
    """`Gate.scheduled` as `portable.programs` has it: 1, 0, or -1 where the models decide."""
    opens = context.gate.scheduled(position, key)
    return -1 if opens is None else int(opens)


@dataclass(frozen=True)
class _Query:
    """A text to read, and what is asked of the predictions at some of its places; the lists are of these places.

    Attributes:
        ids: the text, as thinking ids, up to the last place at least.
        places: indices in `ids`; the prediction after each is viewed.
        scored: the thinking id whose log-probability is wanted.
        agreeing: the thinking ids that agree with the base model's choice.
        opens: see `scheduled`.
        draws: how the thinking model's own tokens are drawn.
    """

    ids: list[int]
    places: list[int]
    scored: list[int]
    agreeing: list[list[int]]
    opens: list[int]
    draws: RowDraws | None = None


class RemoteVerifier:
    """Implements `sides.Verifier` with a model on a server."""

    piece: ClassVar[int] = 1024  # each piece has all before it read again

    def __init__(self, context: DecodingContext, verification: Verification, model: RemoteBackend) -> None:
        self._context = context
        self._bridge = verification.bridge
        self._layer = verification.layer
        self._model = model

    def insert(self, rows: Mapping[int, Row]) -> None:
        pass  # a server keeps nothing of what it has read

    def select(self, slots: Sequence[int]) -> None:
        pass

    def commit(self, rows: Sequence[Row]) -> None:
        pass

    def verify(self, drafts: Sequence[Draft], base: BaseView, every: bool = False) -> ThinkingView:
        choices = base.choice.tolist()
        queries = [self._query(draft, row) for draft, row in zip(drafts, choices, strict=True)]
        started = time.perf_counter()
        answer = self._ask(queries, every)
        self._context.draft_length.observe_latency("verifier", time.perf_counter() - started)
        check_not_nan(answer["logprob"], "thinking")
        return RemoteThinkingView.of(
            answer, [query.scored for query in queries], self._bridge, lambda places: self._exactly(queries, places)
        )

    def _query(self, draft: Draft, choices: Sequence[int]) -> _Query:
        row, count = draft.row, len(draft.tokens)
        opens = [scheduled(self._context, row.position + step, row.key) for step in range(draft.length)]
        return _Query(
            ids=[i for ids in (row.thinking_ids[: row.thinking_read], *draft.unread) for i in ids],
            places=[row.thinking_read + end - 1 for end in draft.ends],
            scored=[next(iter(crossed), -1) for crossed in draft.crossed],
            agreeing=[self._bridge.agreeing(choice) for choice in choices[:count]],
            opens=opens + [0] * (count - draft.length),
            draws=row_draws(row, row.position, count) if self._context.steerer is None else None,
        )

    def _ask(self, queries: Sequence[_Query], every: bool) -> dict[str, Any]:
        """The answer of `programs.read`."""
        draws = [query.draws for query in queries]
        steerer, choices = self._context.steerer, self._bridge.thinking_choices
        return self._model.read(
            {
                "ids": [query.ids for query in queries],
                "wanted": [query.places for query in queries],
                "spoken": [query.scored for query in queries],
                "accepted": [query.agreeing for query in queries],
                "opens": [query.opens for query in queries],
                "every": every,
                "sampling": draws,
                # Where its own tokens are emitted there are no candidates to rank.
                "top": 1 if steerer is None else views.TOP_K,
                "chosen": False,
                "residual": self._context.required.thinking_residual,
                "layer": self._layer,
                "width": choices.width,
                "blocked": list(choices.blocked),
            }
        )

    def _exactly(self, queries: Sequence[_Query], places: list[tuple[int, int, int]]) -> list[float]:
        """The log-probabilities of (query, index of a place in it, thinking id)s."""
        by_query: dict[int, list[tuple[int, int]]] = {}
        for query, place, token in places:
            by_query.setdefault(query, []).append((place, token))
        again = [
            replace(
                queries[i],
                ids=queries[i].ids[: max(queries[i].places[place] for place, _ in pairs) + 1],
                places=[queries[i].places[place] for place, _ in pairs],
                scored=[token for _, token in pairs],
                agreeing=[[] for _ in pairs],
                opens=[0] * len(pairs),
                draws=None,
            )
            for i, pairs in by_query.items()
        ]
        logprobs = self._ask(again, every=False)["spoken_logprob"].tolist()
        found = {
            (i, *pair): logprob
            for (i, pairs), row in zip(by_query.items(), logprobs, strict=True)
            for pair, logprob in zip(pairs, row, strict=False)
        }
        return [found[place] for place in places]
