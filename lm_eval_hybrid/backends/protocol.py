"""What decoding asks of a model, wherever it lives: rows of tokens read unsteered, and steered next-token logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Reading:
    """What one unsteered forward pass says at the last position of every row.

    Attributes:
        logits: [rows, vocab] float32, of the next token.
        residual: [rows, d] float32, the residual stream after the hook layer.
    """

    logits: Tensor
    residual: Tensor


class Sequences(Protocol):
    """Rows of tokens decoded in step by one model. What is kept of the past is never steered."""

    reading: Reading

    def extend(self, tokens: Tensor) -> None:
        """Append one token to each row ([rows] int64) and update `reading`."""

    def steered(self, rows: Tensor, steering: Tensor, windows: Sequence[int]) -> Tensor:
        """Next-token logits of candidates, without a trace in what is kept.

        Args:
            rows: [n] int64, rows to steer.
            steering: [n, C, d] float32; steering[i, c] is added to the residual stream after the hook layer of
                row rows[i], on its last windows[c] positions (0: all).
            windows: one a candidate.

        Returns:
            [n, C, vocab] float32.
        """

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows ([m] int64) only, in this order."""


class Backend(Protocol):
    """One model and its tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    device: torch.device
    context_length: int

    def open(self, prompts: list[list[int]], layer: int, reach: int | None) -> Sequences:
        """Read the prompts, each of one token or more.

        Args:
            layer: hook layer: residuals after it are read, and steered.
            reach: the longest window that will be steered (0: all positions; None: nothing).
        """
