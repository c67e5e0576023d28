"""Files in the layout of the method's research repository, for tiny models."""

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import torch

VECTORS = "train-vectors/results/vars/optimized_vectors"
HYPERPARAMETERS = "train-vectors/results/vars/hyperparams"
SAES = "train-saes/results/vars/saes"
TAXONOMIES = "train-saes/results/vars"


def put_vector(
    root: Path, base: str, category: str, suffix: str = "_linear", width: int = 6, **hyperparameters: object
) -> torch.Tensor:
    """Write a random vector and its hyperparameters; those given replace the right ones."""
    generator = torch.Generator().manual_seed(sum(f"{base}{category}{suffix}".encode()))
    vector = torch.randn(width, generator=generator)
    for folder in (VECTORS, HYPERPARAMETERS):
        (root / folder).mkdir(parents=True, exist_ok=True)
    torch.save({category: vector}, root / VECTORS / f"{base}_{category}{suffix}.pt")
    known = {
        "layer": 2,
        "max_iters": 50,
        "learning_rates": [0.01],
        "seed": 42,
        "n_training_examples": 2048,
        "vector_norm": float(vector.norm()),
        "grad_clip": None,
        "steering_type": "linear",
        "lora_rank": None,
        "adaptive_hidden": None,
    }
    record = {"category": category, "hyperparameters": {**known, **hyperparameters}}
    name = f"steering_vector_hyperparams_{base}_{category}{suffix}.json"
    (root / HYPERPARAMETERS / name).write_text(json.dumps(record))
    return vector


def put_vectors(
    root: Path, base: str = "base", categories: str = "bias idx0 idx1 idx3", suffix: str = "_linear"
) -> None:
    for category in categories.split():
        put_vector(root, base, category, suffix)


def put_sae(
    root: Path,
    thinking: str = "thinking",
    layer: int = 1,
    latents: int = 4,
    width: int = 8,
    core: str = "_core",
    **held: object,
) -> dict:
    """Write an SAE with arrays of numpy 1 (core) or 2 (_core); arguments replace its parts, None omits one."""
    generator = torch.Generator().manual_seed(1000 * layer + latents)
    parts = {
        "encoder_weight": torch.randn(latents, width, generator=generator),
        "encoder_bias": torch.randn(latents, generator=generator),
        "decoder_weight": torch.randn(latents, width, generator=generator),
        "b_dec": torch.randn(width, generator=generator) / 4,
        "activation_mean": torch.randn(width, generator=generator),
        "input_dim": width,
        "num_latents": latents,
        "topk": 3,
        "loss": np.float64(0.7),
        "cluster_labels": np.arange(20) % latents,
        "cluster_centers": np.ones((latents, width), np.float32),
        **held,
    }
    parts = {name: part for name, part in parts.items() if part is not None}
    (root / SAES).mkdir(parents=True, exist_ok=True)
    path = root / SAES / f"sae_{thinking}_layer{layer}_clusters{latents}.pt"
    torch.save(parts, path)
    rename_numpy(path, core)
    return parts


def put_taxonomy(root: Path, thinking: str = "thinking", layer: int = 1, **fields: object) -> Path:
    """Write two namings of an SAE with four latents, without scores, or else the given fields."""
    namings = [
        {"categories": [[str(latent), f"{word} {latent}", f"What {word} is."] for latent in range(4)]}
        for word in ("First", "Second")
    ]
    usual = {"results_by_cluster_size": {"4": {"all_results": namings, "avg_final_score": 0.0, "statistics": {}}}}
    (root / TAXONOMIES).mkdir(parents=True, exist_ok=True)
    path = root / TAXONOMIES / f"sae_topk_results_{thinking}_layer{layer}.json"
    path.write_text(json.dumps({"model_id": f"org/{thinking}", "layer": layer, **(fields or usual)}))
    return path


def rename_numpy(path: Path, core: str) -> None:
    """Make a file of torch.save look like one of numpy 1 (core) or 2 (_core), which differ in the module's name."""
    with zipfile.ZipFile(path) as parts:
        held = {name: parts.read(name) for name in parts.namelist()}
    with zipfile.ZipFile(path, "w") as parts:
        for name, data in held.items():
            module = f"cnumpy.{core}.multiarray\n".encode()
            parts.writestr(name, re.sub(rb"cnumpy\._?core\.multiarray\n", module, data))
