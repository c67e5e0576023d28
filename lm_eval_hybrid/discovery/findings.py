"""What the page of a discovery run needs computed: how behaviors follow one another, and a map of the sentences."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from lm_eval_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from torch import Tensor

AXES = 30  # principal components that t-SNE sees
PERPLEXITY = 30.0  # neighbours of a sentence that t-SNE keeps near it, about
FEWEST = 10  # sentences, below which neighbours mean little, and the map is of principal components


def transitions(trace_index: Tensor, category: Tensor, size: int) -> Tensor:
    """Counts [size, size] int64: how often a sentence of the column's category follows one of the row's in a trace.

    Args:
        trace_index: [n] int64, the trace of each sentence; those of a trace are together and in order.
        category: [n] int64, from 0 to `size` - 1.
    """
    follows = trace_index[1:] == trace_index[:-1]
    pairs = (category[:-1] * size + category[1:])[follows]
    return pairs.bincount(minlength=size * size).reshape(size, size)


def map_points(x: Tensor, seed: int) -> Tensor:
    """A map [n, 2] float32 of points [n, d]: t-SNE of their principal components, whose plane it starts from.

    Of fewer than 10 points it is that plane itself, and zeros where all are the same. A seed gives the same map again
    on the same machine.

    Raises:
        HybridError: where x has what is no number.
    """
    import numpy as np
    import torch
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if not x.isfinite().all():
        raise HybridError("a map needs activations that are numbers; found others; read the activations again")
    if bool((x == x[:1]).all()):
        return torch.zeros(len(x), 2)
    points = x.detach().cpu().double().numpy()
    plane = np.zeros((len(points), 2))
    # In one thread: the sums of several end in an order that may differ the next time.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        axes = PCA(min(AXES, *points.shape), random_state=seed).fit_transform(points)
        plane[:, : axes.shape[1]] = axes[:, :2]
        if len(points) >= FEWEST:
            start = plane / plane[:, 0].std() * 1e-4  # small, or the points could not pass one another
            perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
            plane = TSNE(init=start, perplexity=perplexity, random_state=seed).fit_transform(axes)
    return torch.from_numpy(np.asarray(plane)).float()
