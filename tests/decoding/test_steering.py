import pytest
import torch

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.manifest import Manifest
from lm_eval_hybrid.bundles.suite import compose
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.steering import CoefficientNetwork, SparseEncoder, Steering
from tests.oracle import naive
from tests.oracle.models import Pair, random_steering, tiny_pair
from tests.tolerances import approx


@pytest.fixture(scope="module")
def pair() -> Pair:
    return tiny_pair()


@pytest.fixture
def theirs(pair: Pair) -> naive.NaiveSteering:
    return random_steering(pair)


@pytest.fixture
def ours(theirs: naive.NaiveSteering) -> Steering:
    return Steering(
        layer=theirs.layer,
        bias=theirs.bias,
        vectors=theirs.vectors,
        keys=theirs.keys,
        sae_layer=theirs.sae_layer,
        encoder=SparseEncoder(theirs.mean, theirs.b_dec, theirs.W_e, theirs.b_e),
    )


def test_category_is_the_oracles(ours: Steering, theirs: naive.NaiveSteering) -> None:
    residual = theirs.mean + torch.randn(200, len(theirs.mean), generator=torch.Generator().manual_seed(1))
    expected = [naive.category_of(theirs, row) for row in residual]
    assert len(set(expected)) > 2
    assert ours.encoder.category(residual).tolist() == expected


def test_coefficient_is_the_oracles(theirs: naive.NaiveSteering) -> None:
    network = CoefficientNetwork(theirs.trunk_weight, theirs.trunk_bias, theirs.heads_weight, theirs.heads_bias)
    residual = torch.randn(5, theirs.trunk_weight.shape[1], generator=torch.Generator().manual_seed(1))
    expected = [naive.mlp_coefficient(theirs, row, latent) for latent, row in enumerate(residual)]
    assert network.coefficient(residual, torch.arange(5)).tolist() == approx(
        expected, layers=1, magnitude=max(expected)
    )


def test_random_directions_keep_norms_and_are_the_oracles(ours: Steering, theirs: naive.NaiveSteering) -> None:
    bias, vectors = ours.directions("random", seed=4)
    assert torch.allclose(vectors.norm(dim=-1), ours.vectors.norm(dim=-1))
    assert not torch.allclose(vectors, ours.vectors, atol=0.1)
    for mine, naive_tensor in zip((bias, vectors), naive.random_directions(theirs, 4), strict=True):
        assert torch.allclose(mine, naive_tensor, rtol=1e-6)
    assert ours.directions("bundle", seed=4) == (ours.bias, ours.vectors)


def test_a_missing_network_is_a_users_error(ours: Steering) -> None:
    with pytest.raises(HybridError, match="mlp"):
        ours.require_network()


@pytest.mark.parametrize("with_network", [False, True])
def test_from_a_bundle(with_network: bool) -> None:
    model = {"revision": None, "architecture": "LlamaForCausalLM", "tokenizer_sha256": "a" * 64, "layers": 4}
    behavior = {"title": "A", "description": "a", "examples": ["a"]}
    manifest = Manifest.model_validate(
        {
            "name": "tiny",
            "version": "1.0.0",
            "description": "d",
            "license": "MIT",
            "authors": ["a"],
            "citation": "",
            "base": {**model, "id": "b", "hidden_size": 6},
            "thinking": {**model, "id": "t", "hidden_size": 8},
            "steering": {"layer": 2, "coefficients": [1.0], "windows": [1], "gate_rate": None},
            "sae": {"layer": 3, "latents": 3, "k": 1},
            "behaviors": [{**behavior, "key": "check", "latent": 1, "tensor": "vector.check"}],
            "prompt": {"thinking": "raw"},
            "training": {
                "recipe": "r",
                "seed": 0,
                "code_version": "0",
                "data": "n",
                "data_sha256": "b" * 64,
                "holdout": {},
            },
        }
    )
    shapes = {
        "bias": (6,),
        "vector.check": (6,),
        "sae.mean": (8,),
        "sae.encoder.weight": (3, 8),
        "sae.encoder.bias": (3,),
        "sae.decoder.weight": (8, 3),
        "sae.decoder.bias": (8,),
    }
    if with_network:
        shapes |= {
            "coefficient.trunk.weight": (4, 6),
            "coefficient.trunk.bias": (4,),
            "coefficient.heads.weight": (3, 4),
            "coefficient.heads.bias": (3,),
        }
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    steering = Steering.from_suite(compose([Bundle(manifest, tensors)]))
    assert (steering.layer, steering.sae_layer) == (2, 3)
    assert steering.keys == ("latent-0", "check", "latent-2")
    assert torch.equal(steering.vectors[1], tensors["vector.check"])
    assert not steering.vectors[[0, 2]].any()
    assert torch.equal(steering.encoder.decoder_bias, tensors["sae.decoder.bias"])
    assert torch.equal(steering.encoder.weight, tensors["sae.encoder.weight"])
    assert (steering.network is not None) == with_network
