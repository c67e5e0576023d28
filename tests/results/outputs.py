"""Output folders as real runs leave them: the harness's tracker and our sidecar write made-up answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.loggers import EvaluationTracker
from lm_eval.utils import hash_string

from lm_eval_hybrid.decoding.records import Generation, TokenRecord
from lm_eval_hybrid.harness.records import HybridAnswer, install_output_hooks

BUNDLE = "embedded@1.0.0#0123456789ab"
# Text, behavior where the token was steered, and whether that changed it.
Token = tuple[str, str | None, bool]
PLAIN: tuple[Token, ...] = ((" 4", None, False), (" apples", None, False), (".", None, False))
STEERED: tuple[Token, ...] = (
    (" So", "compute", True),
    (" 4", "compute", False),
    (" apples", None, False),
    (".", None, False),
    (" Check", "check", True),
    (" it", None, False),
)


def records(tokens: Sequence[Token], base_runs: bool = True) -> list[TokenRecord]:
    return [
        TokenRecord(
            position=position,
            token=position + 10,
            text=text,
            steered=behavior is not None,
            changed=changed,
            category=None if behavior is None else 0,
            behavior=behavior,
            coefficient=None if behavior is None else 1.0,
            window=None if behavior is None else 0,
            thinking_logprob=-0.25,
            base_choice=position + 10 + changed if base_runs else None,
            base_logprob=-0.5 if base_runs else None,
            thinking_choice=position + 10,
            thinking_choice_logprob=-0.125,
        )
        for position, (text, behavior, changed) in enumerate(tokens)
    ]


def samples(
    scores: Sequence[float], filters: Sequence[str] = ("none",), question: str = "How many?"
) -> list[dict[str, Any]]:
    """Samples as the harness's evaluator makes them, a pass over the documents per filter."""
    made = []
    for name in filters:
        for doc_id, score in enumerate(scores):
            doc = {"question": f"{question} {doc_id}", "answer": "4"}
            made.append(
                {
                    "doc_id": doc_id,
                    "doc": doc,
                    "target": "4",
                    "arguments": [(f"Question: {doc['question']}\nAnswer:", {"until": ["\n"]})],
                    "resps": [[" 4 apples."]],
                    "filtered_resps": ["4"],
                    "filter": name,
                    "metrics": ["exact_match"],
                    "doc_hash": hash_string(json.dumps(doc, indent=2)),
                    "prompt_hash": hash_string(doc["question"]),
                    "target_hash": hash_string("4"),
                    "exact_match": float(score),
                }
            )
    return made


def write(
    folder: Path,
    arm: str | None,
    tasks: dict[str, list[dict[str, Any]] | None],
    tokens: Sequence[Sequence[Token]] | None = None,
    base_runs: bool = True,
    **config: Any,
) -> Path:
    """One run of the harness over `tasks` (name -> samples, None: not logged). Returns its results file.

    `tokens`, one sequence per document, make the sidecar of every task; without them there is none.
    """
    hybrid = {
        "hybrid_arm": arm,
        "hybrid_bundle": BUNDLE,
        "hybrid_base": "embedded:base@000000000000",
        "hybrid_thinking": None if arm == "base" else "embedded:thinking@111111111111",
        "hybrid_policy": {"gate": "disagreement", "coefficients": [0.5, 1.0], "seed": 7},
        "hybrid_totals": {"tokens": 100, "seconds": 0.5, "tokens_per_second": 200.0},
        "hybrid_version": "0.1.0",
        "hybrid_nnsight_version": "0.8.1",
    }
    results = {
        "results": {},
        "configs": {task: {"task": task} for task in tasks},
        "config": {"model": "hybrid", "limit": None, **(hybrid if arm else {}), **config},
        "pretty_env_info": "PyTorch version: 2.13.0+cpu\nIs debug build: False",
        "transformers_version": "5.23.0",
        "lm_eval_version": "0.4.13",
    }
    install_output_hooks()
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.log_experiment_args("hybrid", {"arm": arm}, None, None, False)
    logged = {task: [dict(sample) for sample in made] for task, made in tasks.items() if made is not None}
    tracker.save_results_aggregated(results, logged)
    for task, made in logged.items():
        if tokens is not None:
            for sample in made:
                sample["resps"] = [[_answer(tokens[sample["doc_id"]], arm, base_runs)]]
        tracker.save_results_samples(task, made)
    (written,) = folder.parent.rglob(f"*_{tracker.date_id}.json")
    return written


def _answer(tokens: Sequence[Token], arm: str, base_runs: bool) -> HybridAnswer:
    text = "".join(text for text, _, _ in tokens)
    return HybridAnswer(text, Generation(text, tuple(records(tokens, base_runs)), "stop"), arm, BUNDLE)
