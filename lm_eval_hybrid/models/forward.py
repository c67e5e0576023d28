"""One unsteered pass of a model, the residual stream read on the way: through nnsight, and around it.

Nearly all passes of decoding are these. A trace visits every module of the model, which is a measurable part of a
short pass (`benchmarks/passes.py`), so they go around nnsight by a forward hook; steering, and all else, goes through
it. That both read the same is tested.
"""

from collections.abc import Callable, Mapping
from typing import Any

from nnsight import Envoy
from torch import Tensor, nn

ReadPass = Callable[[Envoy, Envoy, Mapping[str, Any]], tuple[Tensor, Tensor]]
"""(model, a layer of it, arguments of forward) -> (the layer's output [rows, n, d], logits [rows, n or 1, vocab])."""


def traced(model: Envoy, layer: Envoy, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Through nnsight."""
    with model.trace(**arguments):
        residual = layer.output.save()
        logits = model.output.logits.save()
    return residual, logits


def hooked(model: Envoy, layer: Envoy, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Around nnsight: the modules that it wraps, called as they are."""
    seen: list[Tensor] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen.append(output)

    handle = layer._module.register_forward_hook(see)
    try:
        logits = model._module(**arguments).logits
    finally:
        handle.remove()
    return seen[0], logits
