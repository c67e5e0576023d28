import torch
from torch import Tensor
from torch.nn import functional as F

from lm_eval_hybrid.discovery.sae import SaeRecipe, train

RECIPE = SaeRecipe(layer=0, latents=5, k=1, restarts=2, steps=200)


def clusters(count: int = 400, width: int = 24, noise: float = 0.05) -> tuple[Tensor, Tensor]:
    """Points around five directions, far from the origin, and which direction each is of."""
    torch.manual_seed(0)
    directions, labels = F.normalize(torch.randn(5, width), dim=-1), torch.arange(count) % 5
    return 10 + 3 * directions[labels] + noise * torch.randn(count, width), labels


def test_latents_find_the_directions_without_labels() -> None:
    points, labels = clusters()
    found = train(points, RECIPE, seed=0)
    strongest = found.codes(points).argmax(-1)
    pairs = {(int(a), int(b)) for a, b in zip(strongest, labels, strict=True)}
    assert len(pairs) == 5 and len({latent for latent, _ in pairs}) == 5
    assert found.explained(points) > 0.95


def test_the_same_seed_gives_the_same_autoencoder() -> None:
    points, _ = clusters(100)
    first, again = train(points, RECIPE, seed=1), train(points, RECIPE, seed=1)
    assert torch.equal(first.encoder.weight, again.encoder.weight)
    assert not torch.equal(first.encoder.weight, train(points, RECIPE, seed=2).encoder.weight)


def test_more_active_latents_explain_more() -> None:
    points, _ = clusters(noise=1.0)
    one = train(points, RECIPE, seed=0).explained(points)
    three = train(points, SaeRecipe(layer=0, latents=5, k=3, restarts=2, steps=200), seed=0).explained(points)
    assert three > one + 0.05


def test_decoder_columns_have_norm_one() -> None:
    points, _ = clusters(100)
    assert torch.allclose(train(points, RECIPE, seed=0).decoder.norm(dim=0), torch.ones(5), atol=1e-5)
