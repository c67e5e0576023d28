"""Categories from k-means and from Gaussian mixtures, to set beside those of autoencoders."""

import warnings
from collections.abc import Iterator

import numpy as np
import torch

from lm_eval_hybrid.discovery.taxonomy.figures import Points, Starts
from lm_eval_hybrid.discovery.taxonomy.sae import Baseline, SaeRecipe

FLOOR = 1e-3  # of a component's variance, as a share of the mean one


def categories(method: Baseline, points: Points, recipe: SaeRecipe, seed: int) -> Iterator[Starts]:
    """Of each of the recipe's sizes, the categories from all starts.

    The mixture's components have diagonal covariances, along the points' `recipe.dimensions` principal axes.
    """
    learned, held_out = points.learned.numpy(), points.held_out.numpy()
    if method == "gmm":
        learned, held_out = _axes(learned, held_out, recipe.dimensions, seed)
    for size in recipe.sizes:
        yield [_fit(method, learned, held_out, size, seed + start) for start in range(recipe.seeds)]


def _axes(learned: np.ndarray, held_out: np.ndarray, dimensions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.decomposition import PCA

    axes = PCA(min(dimensions, *learned.shape), random_state=seed % 2**32).fit(learned)
    return axes.transform(learned), axes.transform(held_out)


def _fit(
    method: Baseline, learned: np.ndarray, held_out: np.ndarray, size: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    if method == "gmm":
        # Without a floor, a component that closes in on few points has no variance left.
        floor = FLOOR * float(learned.var(0).mean())
        model = GaussianMixture(size, covariance_type="diag", reg_covar=floor, random_state=seed % 2**32)
    else:
        model = KMeans(size, n_init=1, random_state=seed % 2**32)
    # Of several threads each adds to the sums when it is done: the same seed would not give the same bytes.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(learned)
        ours, others = model.predict(learned), model.predict(held_out)
    return torch.from_numpy(ours).long(), torch.from_numpy(others).long()
