"""Files of runs with many long answers, as the harness and the token log write them."""

import json
import random
from dataclasses import asdict
from pathlib import Path

from lm_eval_hybrid.decoding.records import TOKENS_SCHEMA
from tests.results.outputs import BUNDLE, records

DATE = "2026-01-02T03-04-05.678901"
BEHAVIORS = tuple(f"behavior-{i}" for i in range(15))
STEERED = 0.08  # share of the hybrid's tokens
_PLAIN = json.dumps(asdict(records([("%s", None, False)])[0]) | {"position": "%d"}).replace('"%d"', "%d")


def write_many(folder: Path, documents: int = 1319, tokens: int = 300, steered: float = STEERED) -> None:
    """Write the files of arms base, hybrid and thinking on one task, with token records of the hybrid."""
    draw = random.Random(0)
    words = [" " + "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
    often = [1 / (i + 10) for i in range(len(words))]  # like words of a language, so that it compresses like one
    record = asdict(records([(" x", "y", True)])[0])
    for arm in ("base", "hybrid", "thinking"):
        (folder / arm).mkdir(parents=True)
        results = {
            "configs": {"many": {}},
            "config": {
                "hybrid_arm": arm,
                "hybrid_bundle": BUNDLE,
                "hybrid_base": "base",
                "hybrid_thinking": "thinking",
            },
        }
        (folder / arm / f"results_{DATE}.json").write_text(json.dumps(results))
        with (
            (folder / arm / f"samples_many_{DATE}.jsonl").open("w") as samples,
            (folder / arm / f"tokens_many_{DATE}.jsonl").open("w") as sidecar,
        ):
            for doc_id in range(documents):
                answer = draw.choices(words, often, k=tokens)
                samples.write(json.dumps(_sample(doc_id, "".join(answer), draw)) + "\n")
                if arm == "hybrid":
                    made = [_record(record, i, text, draw, steered) for i, text in enumerate(answer)]
                    line = {"schema_version": TOKENS_SCHEMA, "doc_id": doc_id, "prompt": "", "text": "".join(answer)}
                    line |= {"finish": "eos", "words": {"7": " other"}}
                    sidecar.write(f'{json.dumps(line)[:-1]}, "records": [{",".join(made)}]}}\n')
        if arm != "hybrid":
            (folder / arm / f"tokens_many_{DATE}.jsonl").unlink()


def _sample(doc_id: int, text: str, draw: random.Random) -> dict:
    question = f"Question {doc_id}: {text[:200]}?"
    return {
        **{"doc_id": doc_id, "doc": {"question": question}, "target": str(doc_id), "filter": "none"},
        **{"arguments": {"gen_args_0": {"arg_0": f"Question: {question}\nAnswer:"}}, "resps": [[text]]},
        **{"filtered_resps": [str(doc_id)], "doc_hash": f"d{doc_id}", "prompt_hash": f"p{doc_id}"},
        **{"exact_match": float(draw.random() < 0.5), "metrics": ["exact_match"]},
    }


def _record(record: dict, position: int, text: str, draw: random.Random, steered: float) -> str:
    if draw.random() >= steered:
        return _PLAIN % (position, text)
    changes = {
        **{"position": position, "text": text, "behavior": draw.choice(BEHAVIORS), "base_choice": 7},
        **{"coefficient": draw.random(), "base_logprob": -draw.random(), "thinking_logprob": -draw.random()},
    }
    return json.dumps(record | changes)
