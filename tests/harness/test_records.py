"""Answers as strings with records, and their totals."""

import copy
import json
import pickle

from lm_eval.api.instance import Instance

from lm_eval_hybrid.decoding.records import Generation, TokenRecord
from lm_eval_hybrid.decoding.sampling import Sampling
from lm_eval_hybrid.harness.records import HybridAnswer, RunReport, Totals, ignore_padding
from lm_eval_hybrid.models.ndif.client import Traffic


def record(position: int, behavior: str | None, base_choice: int | None = 5) -> TokenRecord:
    steered = behavior is not None
    return TokenRecord(position, 5, "a", steered, position == 0, 1, behavior, 1.0, 0, -0.1, base_choice, -0.5, 5, -0.2)


GENERATION = Generation("aa", (record(0, "plan"), record(1, None)), "length")


def test_an_answer_is_its_text_with_records() -> None:
    answer = HybridAnswer("aa", GENERATION, "hybrid", "tiny@1", thought_open=True)
    assert answer == "aa"
    assert json.dumps([answer]) == '["aa"]'
    assert type(str(answer)) is str
    for twin in (pickle.loads(pickle.dumps(answer)), copy.deepcopy(answer)):
        assert (twin, twin.generation, twin.arm, twin.bundle, twin.thought_open) == (
            "aa", GENERATION, "hybrid", "tiny@1", True,
        )  # fmt: skip


def test_the_harness_can_make_a_target_of_its_type() -> None:
    assert HybridAnswer(18) == "18"
    assert HybridAnswer("18").generation is None


def test_totals() -> None:
    totals = Totals(seconds=2.0)
    for _ in range(2):
        totals.add(GENERATION)
    assert totals.summary() == {
        "requests": 2,
        "tokens": 4,
        "steered": 2,
        "changed": 2,
        "steered_fraction": 0.5,
        "changed_fraction": 0.5,
        "behaviors": {"plan": 2},
        "truncated": 2,
        "seconds": 2.0,
        "tokens_per_second": 2.0,
    }


def test_totals_of_ranks_add_up_but_for_their_time() -> None:
    ranks = [Totals(seconds=1.0), Totals(seconds=3.0)]
    for rank in (0, 1, 1):
        ranks[rank].add(GENERATION)
    whole = Totals.of(ranks)
    assert (whole.requests, whole.tokens, whole.behaviors["plan"], whole.seconds) == (3, 6, 3, 3.0)
    assert Totals.of([whole, Totals()]).summary() == whole.summary()


def test_changes_are_unknown_where_the_base_was_not_run() -> None:
    totals = Totals(seconds=1.0)
    totals.add(Generation("a", (record(0, "plan", base_choice=None),), "eos"))
    assert (totals.summary()["changed"], totals.summary()["changed_fraction"]) == (None, None)


def test_totals_of_nothing() -> None:
    summary = Totals().summary()
    assert (summary["requests"], summary["tokens"], summary["steered"]) == (0, 0, 0)
    assert summary["steered_fraction"] is summary["changed_fraction"] is summary["tokens_per_second"] is None


def test_a_report_covers_all_ranks() -> None:
    """The requests of other ranks were once left out of the results."""
    first = RunReport(Totals(requests=2), {None}, ["a"], {"base": Traffic(requests=3, sent=5)})
    second = RunReport(Totals(requests=1), {Sampling(0.7)}, ["a", "b"], {"base": Traffic(requests=4)})
    whole = RunReport.of([first, second])
    assert whole.totals.requests == 3
    assert whole.traffic == {"base": Traffic(requests=7, sent=5)}
    assert whole.warnings == ["a", "b"]
    assert whole.entries()["hybrid_sampling"] == ["greedy", "temperature=0.7, top_k=0, top_p=1.0, seed=0"]


def test_responses_to_padding_are_not_stored() -> None:
    """With two processes and four repeats the last document of a rank once had eight answers."""
    first, last = (Instance("generate_until", {}, ("2 + 2?", {}), 0, ("task", i, 4)) for i in range(2))
    requests = [first] * 4 + [last] * 8  # as the harness lists them: repeats, then padding
    ignore_padding(requests)
    for i, request in enumerate(requests):
        request.resps.append(str(i))
    assert first.resps == ["0", "1", "2", "3"]
    assert last.resps == ["4", "5", "6", "7"]
    assert json.loads(json.dumps(last.resps)) == list(last.resps)
