"""Trains the embedded pair from scratch: tokenizer, base (ill-timed notebooks), thinking model (base, fine-tuned).

    python -m lm_eval_hybrid.embedded.training OUT_FOLDER

Two CPU cores need about forty minutes. Everything is drawn from `TrainingRecipe.seed`; the problems of the two test
sets are kept out of training. Existing weights are kept, so an interrupted run continues with the next part.
"""

import argparse
import itertools
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from lm_eval_hybrid.embedded.corpus import (
    Writer,
    base_document,
    batches,
    documents,
    held_out_problems,
    thinking_document,
    train_tokenizer,
)
from lm_eval_hybrid.embedded.notebooks import well_timed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRecipe:
    """The architecture of the pair and the schedule of its training.

    Attributes:
        seed: of the problems, the corpora and the initial weights.
        width, layers, heads: of both Llama models; the MLP is three times as wide.
        base_rounds, thinking_rounds: of pretraining and of fine-tuning: (optimiser steps, factor of the learning
            rates); each round ends at rate 0 and draws its own documents.
        batch_tokens: most tokens in a batch, padding included.
        muon_rate, adam_rate: peak learning rates of the layers' matrices and of everything else.
    """

    seed: int = 0
    width: int = 128
    layers: int = 4
    heads: int = 4
    base_rounds: tuple[tuple[int, float], ...] = ((2600, 1.0), (1100, 0.5), (900, 0.4))
    thinking_rounds: tuple[tuple[int, float], ...] = ((300, 0.2), (500, 0.3))
    batch_tokens: int = 6144
    muon_rate: float = 0.02
    adam_rate: float = 0.004


def new_model(recipe: TrainingRecipe, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A Llama with fresh weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    end = tokenizer.eos_token_id
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.width,
            intermediate_size=3 * recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def fit(
    model: LlamaForCausalLM, stream: Iterator[tuple[Tensor, Tensor]], steps: int, recipe: TrainingRecipe, rate: float
) -> None:
    """Train `model` in place: Muon for the layers' matrices, AdamW for the rest, a cosine after a short warm-up."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [
        torch.optim.Muon(matrices, lr=rate * recipe.muon_rate, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=rate * recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedules = [
        LambdaLR(o, lambda step: min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps)))
        for o in optimizers
    ]
    model.train()
    bar = tqdm(itertools.islice(stream, steps), total=steps, mininterval=20)
    for ids, labels in bar:
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad(set_to_none=True)
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


def train_pair(out: Path, recipe: TrainingRecipe) -> None:
    """Write tokenizer/, base/, thinking/ and the two test sets into `out`."""
    write_test_sets(out, recipe.seed)
    tokenizer = save_tokenizer(out / "tokenizer", recipe.seed)

    def fit_rounds(model: LlamaForCausalLM, write: Writer, name: str, rounds: tuple[tuple[int, float], ...]) -> None:
        for number, (steps, rate) in enumerate(rounds):
            documents = batches(write, tokenizer, f"{name}{number or ''}", recipe.seed, recipe.batch_tokens)
            fit(model, documents, steps, recipe, rate)
        save(model, tokenizer, out / name)

    if not (out / "base").exists():
        fit_rounds(new_model(recipe, tokenizer), base_document, "base", recipe.base_rounds)
    if not (out / "thinking").exists():
        base = LlamaForCausalLM.from_pretrained(out / "base", dtype=torch.float32)
        fit_rounds(base, thinking_document, "thinking", recipe.thinking_rounds)


def save_tokenizer(folder: Path, seed: int) -> PreTrainedTokenizerBase:
    """Train the tokenizer on the base's corpus, save it, and return it as a user would load it."""
    sample = itertools.islice(documents(base_document, "tokenizer", seed), 4000)
    texts = (document.prompt + "".join(text for text, _ in document.pieces) for document in sample)
    train_tokenizer(texts).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def write_test_sets(out: Path, seed: int) -> None:
    """Write gsm8k_embedded.jsonl and math500_embedded.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    for family, problems in held_out_problems(seed).items():
        rows = [problem.document("".join(text for _, text in well_timed(problem)).strip()) for problem in problems]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (out / f"{family}_embedded.jsonl").write_text(lines, encoding="utf-8", newline="\n")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a model with its tokenizer under a temporary name, then rename the folder."""
    temporary = folder.with_name(folder.name + ".partial")
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder that gets the models, the tokenizer and the test sets")
    logging.basicConfig(level=logging.INFO)
    train_pair(parser.parse_args().out, TrainingRecipe())


if __name__ == "__main__":
    main()
