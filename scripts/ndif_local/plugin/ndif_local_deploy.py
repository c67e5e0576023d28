"""Brings models up to a number of replicas: MODEL=N ..., MODEL a folder or a hub id. Ends once all of them serve."""

from __future__ import annotations

import os
import sys

import ray
from ndif.cli.lib._common import ensure_ray_connected
from ndif.cli.lib.deploy import deploy
from ndif.common.providers.ray import get_controller_actor_handle
from nnsight.modeling import huggingface
from nnsight.modeling.transformers import TransformersModel
from transformers import AutoTokenizer


def key(model: str) -> str:
    """What a client calls the model; a folder is its own canonical name."""
    if os.path.isdir(model):
        huggingface._ID_CACHE[model] = model
    # Nothing but the tokenizer's class is asked of the folder otherwise, and a tokenizer of our own is not of any
    # class.
    return TransformersModel(
        model, task="text-generation", tokenizer=AutoTokenizer.from_pretrained(model)
    ).to_model_key()


def main() -> None:
    ensure_ray_connected(os.environ["NDIF_RAY_ADDRESS"])
    specs = []
    for argument in sys.argv[1:]:
        model, _, count = argument.rpartition("=")
        model_key = key(model)
        there = len(ray.get(get_controller_actor_handle().get_deployment.remote(model_key)).replicas)
        if there < int(count):
            lacking = int(count) - there
            specs.append(
                {"checkpoint": model, "model_key": model_key, "replicas": lacking, "pinned": True, "trusted": True}
            )
    outcome = deploy(specs, redis_url=os.environ["NDIF_REDIS_URL"], on_message=print) if specs else {"deployments": []}
    failed = [entry for entry in outcome["deployments"] if entry["status"] != "READY"]
    if failed:
        sys.exit("\n".join(f"{entry['checkpoint']}: {entry['error']}" for entry in failed))


if __name__ == "__main__":
    main()
