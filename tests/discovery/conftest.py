from dataclasses import dataclass

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from lm_eval_hybrid.backends.local import LocalBackend
from lm_eval_hybrid.discovery.activations import ReadTrace, read
from lm_eval_hybrid.discovery.traces import Trace, write
from tests.tiny_system import tiny_model, tiny_tokenizer

SAE_LAYER = 2


@dataclass(frozen=True)
class Studied:
    """A random pair over one vocabulary that disagrees at times, with traces of its thinking model."""

    base: LocalBackend
    thinking: LocalBackend
    traces: list[Trace]
    read: list[ReadTrace]


def bos_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer, but it begins each text with a token, as Llama's does."""
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
    backends = [LocalBackend(model, tiny_tokenizer()) for model in (base, thinking)]
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    traces = write(path, backends[1], [f"Question {i}: one. two?" for i in range(12)], max_new_tokens=40)
    return Studied(*backends, traces, read(backends[1], backends[0], traces, SAE_LAYER))
