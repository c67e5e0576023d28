"""What both models make of the traces, token by token: residuals, and the positions where they disagree."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from lm_eval_hybrid.backends.local import LocalBackend
from lm_eval_hybrid.discovery.sentences import Sentence, split
from lm_eval_hybrid.discovery.thoughts import thought
from lm_eval_hybrid.discovery.traces import Trace, prompt_ids

BATCH = 32
LOGITS = 2**30  # bytes of float32 logits at once, unless one row alone has more


@dataclass(frozen=True)
class Encoded:
    """A trace as token ids, prompt and end token included: where the trace begins, and its sentences, whose spans index
    `ids`."""

    ids: list[int]
    begin: int
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True)
class ReadTrace:
    """A trace as token ids, and what both models say after each of its tokens.

    Attributes:
        ids: [n] int64, prompt and trace, the end token included.
        begin: where the trace begins in `ids`.
        sentences: of the trace; their spans index `ids`.
        residual: [n, d_thinking] float32, of the thinking model after the SAE's layer.
        thinking_choice: [n] int64, the thinking model's next token.
        base_choice: [n] int64, the base model's.
    """

    ids: Tensor
    begin: int
    sentences: tuple[Sentence, ...]
    residual: Tensor
    thinking_choice: Tensor
    base_choice: Tensor

    def gates(self) -> Tensor:
        """[g] int64: positions, from the last of the prompt on, at which the two models' next tokens differ."""
        differ = self.thinking_choice != self.base_choice
        differ[: self.begin - 1] = False
        differ[-1] = False  # after the end token
        return differ.nonzero()[:, 0]


def read(thinking: LocalBackend, base: LocalBackend, traces: Sequence[Trace], layer: int) -> list[ReadTrace]:
    """Runs both models over the traces; `layer` is the SAE's, in the thinking model. Vocabularies must be the same."""
    encoded = [encode(trace, thinking) for trace in traces]
    sequences = [one.ids for one in encoded]
    seen = zip(encoded, forward(thinking, sequences, layer), forward(base, sequences, layer=None), strict=True)
    bar = tqdm(seen, total=len(traces), desc="activations")
    return [
        ReadTrace(torch.tensor(one.ids), one.begin, one.sentences, residual, choice, base_choice)
        for one, (residual, choice), (_, base_choice) in bar
    ]


@torch.no_grad()
def forward(
    backend: LocalBackend, sequences: Sequence[list[int]], layer: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass a sequence: (residual [n, d] float32 after `layer`, next token [n] int64), both on the CPU."""
    hook = backend.layers[-1 if layer is None else layer]
    model = backend.model
    for some in _batches(sequences, backend.config.get_text_config().vocab_size):
        width = max(map(len, some))
        # Padded on the right, where causal attention never looks.
        ids = torch.tensor([row + [0] * (width - len(row)) for row in some], device=backend.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in some], device=backend.device)
        with model.trace(input_ids=ids, attention_mask=mask, use_cache=False):
            residual = hook.output.save()
            logits = model.output.logits.save()
        choice = logits.argmax(-1).cpu()
        residual = residual.float().cpu()
        for row, tokens in enumerate(some):
            yield residual[row, : len(tokens)].clone(), choice[row, : len(tokens)].clone()


def _batches(sequences: Sequence[list[int]], vocabulary: int) -> Iterator[Sequence[list[int]]]:
    """Up to BATCH neighbours, fewer where their logits would take more than LOGITS bytes."""
    first = 0
    while first < len(sequences):
        some = sequences[first : first + BATCH]
        row = max(map(len, some)) * vocabulary * 4
        some = some[: max(1, LOGITS // row)]
        yield some
        first += len(some)


def encode(trace: Trace, backend: LocalBackend) -> Encoded:
    """A trace in a model's tokens."""
    tokenizer = backend.tokenizer
    prompt = prompt_ids(tokenizer, trace.prompt)
    answer = tokenizer(trace.text, add_special_tokens=False, return_offsets_mapping=True)
    span = thought(trace.text, trace.prompt)
    ends = [end for _, end in answer.offset_mapping]
    spans = [] if span is None else split(trace.text, ends, span.begin, span.end)
    moved = tuple(Sentence(s.text, s.begin + len(prompt), s.end + len(prompt)) for s in spans)
    return Encoded([*prompt, *answer.input_ids, tokenizer.eos_token_id], len(prompt), moved)
