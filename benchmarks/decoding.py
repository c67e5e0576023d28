"""How much faster the cached decoder is than the naive loop that it must equal: `python -m benchmarks.decoding`.

Both decode the same prompts in one run, on one core, taking turns, and their tokens are compared; the ratio of their
CPU times is what is worth reading, as it does not depend on what else the machine does. The decoder runs them as one
batch, and one by one.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TypeVar

import torch

from lm_eval_hybrid.backends.local import LocalBackend
from lm_eval_hybrid.decoding.arms import policy_for
from lm_eval_hybrid.decoding.decoder import HybridDecoder, Prompt
from lm_eval_hybrid.decoding.policy import Policy
from lm_eval_hybrid.decoding.steering import SparseEncoder, Steering
from tests.oracle.models import NOISE, Pair, random_prompts, random_steering, related, tiny_model, tiny_tokenizer
from tests.oracle.naive import NaivePolicy, naive_generate

T = TypeVar("T")

POLICIES = {
    "base": policy_for("base", Policy((1.0,), (1,))),
    "takeover": policy_for("takeover", Policy((1.0,), (1,))),
    "hybrid, window 1": Policy((0.5, 1.0, 1.5, 2.0), (1,)),
    "hybrid, window 8": Policy((0.5, 1.0, 1.5, 2.0), (8,)),
    "hybrid, all positions": Policy((0.5, 1.0, 1.5, 2.0), (0,)),
}


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """(CPU seconds, result)."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def compare(pair: Pair, policy: Policy, prompts: Sequence[Prompt], new: int) -> list[str]:
    """A row of the table: steered, tokens a second of the naive loop, ratios, tokens a second of the batch."""
    naive_steering = random_steering(pair)
    steering = Steering(
        layer=naive_steering.layer,
        bias=naive_steering.bias,
        vectors=naive_steering.vectors,
        keys=naive_steering.keys,
        sae_layer=naive_steering.sae_layer,
        encoder=SparseEncoder(naive_steering.mean, naive_steering.b_dec, naive_steering.W_e, naive_steering.b_e),
    )
    base, thinking = (LocalBackend(model, pair.tokenizer) for model in (pair.base, pair.thinking))
    decoder = HybridDecoder(base, thinking, steering, policy)
    naive_policy = NaivePolicy(**asdict(policy))

    def naive(prompt: Prompt) -> list[int]:
        models = (pair.base, pair.thinking, (pair.tokenizer, pair.tokenizer))
        ids = (prompt.base_ids, prompt.thinking_ids)
        return naive_generate(*models, naive_steering, naive_policy, *ids, new)["tokens"]

    decoder.generate(prompts[:1], 2)  # what happens once a process is not what is compared
    slow, expected = timed(lambda: [naive(prompt) for prompt in prompts])
    batched, answers = timed(lambda: decoder.generate(prompts, new))
    alone, _ = timed(lambda: [decoder.generate([prompt], new) for prompt in prompts])
    if [list(answer.tokens) for answer in answers] != expected:
        sys.exit("the decoder and the naive loop disagree: the benchmark compares nothing")
    tokens = sum(map(len, expected))
    steered = sum(record.steered for answer in answers for record in answer.records) / tokens
    rates = f"{tokens / slow:.0f}", f"{slow / alone:.1f}", f"{slow / batched:.1f}", f"{tokens / batched:.0f}"
    return [f"{steered:.0%}", *rates]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8, help="prompts, decoded at once")
    parser.add_argument("--new", type=int, default=48, help="tokens to generate for each")
    parser.add_argument("--width", type=int, default=128, help="of both models, which have 4 layers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = tiny_model("llama", seed=0, width=options.width)
    # Wider models need less noise to disagree as often.
    thinking = related(base, seed=1000, noise=NOISE["llama"] * 0.17)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None  # every answer has its full length
    pair = Pair(base, thinking, tokenizer)
    prompts = [Prompt(ids, ids) for ids in random_prompts(options.batch, shortest=40, longest=80)]
    columns = ["policy", "steered", "naive tok/s", "ratio, one by one", "ratio, batch", "batch tok/s"]
    sys.stdout.write(f"{columns[0]:<22} | " + " | ".join(columns[1:]) + "\n")
    for name, policy in POLICIES.items():
        row = [name, *compare(pair, policy, prompts, options.new)]
        cells = [cell.rjust(len(column)) for cell, column in zip(row[1:], columns[1:], strict=True)]
        sys.stdout.write(f"{row[0]:<22} | " + " | ".join(cells) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
