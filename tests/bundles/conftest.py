"""A small bundle for a base of width 6 and 4 layers and a thinking model of width 8 and 3 layers."""

from collections.abc import Callable

import pytest
import torch

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.contents import tensor_shapes
from lm_eval_hybrid.bundles.manifest import Manifest


@pytest.fixture
def fields() -> dict:
    """The fields of a sound manifest; tests may change them."""
    model = {"revision": None, "architecture": "LlamaForCausalLM", "tokenizer_sha256": "a" * 64}
    return {
        "name": "tiny",
        "version": "1.2.0",
        "description": "A bundle for tests.",
        "license": "MIT",
        "authors": ["A. Tester"],
        "citation": "",
        "base": {**model, "id": "org/base", "hidden_size": 6, "layers": 4},
        "thinking": {**model, "id": "org/thinking", "hidden_size": 8, "layers": 3},
        "steering": {"layer": 2, "coefficients": [0.5, 1.0], "windows": [1, 0], "gate_rate": 0.1},
        "sae": {"layer": 1, "latents": 4, "k": 2},
        "behaviors": [
            _behavior("restate", 0, "Restating"),
            _behavior("check", 2, "Checking"),
        ],
        "prompt": {"thinking": "raw", "prefix": "<think>\n"},
        "training": {
            "recipe": "tiny",
            "seed": 7,
            "code_version": "0.1.0",
            "data": "none",
            "data_sha256": "b" * 64,
            "holdout": {"accuracy": 0.8},
        },
        "results": [
            {
                "task": "gsm8k_embedded",
                "scores": {"base": 0.25, "hybrid": 0.75},
                "gap_recovered": 0.71,
                "gap_interval": [0.62, 0.8],
                "steered_fraction": 0.07,
                "changed_fraction": 0.05,
                "documents": 200,
                "seed": 0,
                "harness_version": "0.4.13",
            }
        ],
    }


def _behavior(key: str, latent: int, title: str) -> dict:
    words = {"title": title, "description": "Says it again.", "examples": ["So there are 3 | 4 apples."]}
    return {**words, "key": key, "latent": latent, "tensor": f"vector.{key}"}


@pytest.fixture
def make_bundle(fields: dict) -> Callable[..., Bundle]:
    """Builds a bundle of seeded random tensors; keyword arguments replace top-level manifest fields."""

    def make(network: int | None = None, **changes: object) -> Bundle:
        manifest = Manifest.model_validate({**fields, **changes})
        generator = torch.Generator().manual_seed(3)
        shapes = tensor_shapes(manifest, network)
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return Bundle(manifest, tensors)

    return make
