from dataclasses import dataclass

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.discovery.traces.pair import ModelPair
from lm_eval_hybrid.discovery.traces.sources import generate
from lm_eval_hybrid.discovery.traces.trace import Trace
from lm_eval_hybrid.models.local import LocalBackend
from tests.tiny_system import tiny_model, tiny_tokenizer

RAW = PromptSpec(thinking="raw")


@dataclass(frozen=True)
class Studied:
    """A random pair over one vocabulary that disagrees at times, with traces of its thinking model."""

    pair: ModelPair
    traces: list[Trace]

    @property
    def base(self) -> LocalBackend:
        return self.pair.base

    @property
    def thinking(self) -> LocalBackend:
        return self.pair.thinking


def bos_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a BOS token, as Llama's has."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<pad>"
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", 0)])
    return tokenizer


@pytest.fixture(scope="session")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Studied:
    base, thinking = tiny_model(0), tiny_model(0)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in thinking.model.parameters():
            weight.add_(torch.randn_like(weight) * 0.01)
    pair = ModelPair(*(LocalBackend(model, tiny_tokenizer()) for model in (base, thinking)), RAW)
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    return Studied(pair, generate(path, pair, [f"Question {i}: one. two?" for i in range(12)], max_new_tokens=40))
