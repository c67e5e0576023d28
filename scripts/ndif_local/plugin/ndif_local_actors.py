"""The server's actors without a GPU. The server takes them by name (NDIF_MODEL_IMPORT_PATH,
NDIF_CONTROLLER_IMPORT_PATH).

Each actor class that Ray is handed is empty, and its base plain: Ray ships the decorated class by value and the base by
reference, which is what makes a worker import this module.
"""

from __future__ import annotations

import json
import math
from typing import Any

import ray
import torch
from ndif.services.ray.deployments.controller.cluster.evaluator import CacheEntry, ModelEvaluator
from ndif.services.ray.deployments.controller.controller import _ControllerActor
from ndif.services.ray.deployments.modeling.base import BaseModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel
from nnsight.modeling.mixins.remotable import bytes_per_element
from transformers import AutoConfig, AutoModelForCausalLM

# The server waits for the GPU after every request, and torch without one raises at that.
torch.cuda.synchronize = lambda device=None: None


class CPUModelDeployment(BaseModelDeployment):
    """A model in the machine's memory."""

    CACHEABLE = False  # a model is parked by leaving the GPU for where this one is already

    def load_from_disk(self) -> HuggingFaceModel:
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, dtype=self.dtype_name, device="cpu", **self.kwargs
        )
        model._module.requires_grad_(False)
        return model


@ray.remote(num_cpus=0, max_restarts=-1)
class CPUModelActor(CPUModelDeployment):
    pass


class ConfigEvaluator(ModelEvaluator):
    """Sizes a causal language model by its configuration, from a folder or the cache.

    The server would ask the hub, for folders too, in terms that nnsight 0.8 does not know (`trust_remote_code`).
    """

    def _entry(self, model_key: str, dtype: str | None, trust_remote_code: bool) -> CacheEntry:
        held = str(dtype or "bfloat16").removeprefix("torch.")
        entry = self.cache.get(model_key)
        if entry is None or (entry.dtype, entry.trust_remote_code) != (held, trust_remote_code):
            entry = self.cache[model_key] = _sized(model_key, held, trust_remote_code)
        return entry


def _sized(model_key: str, dtype: str, trust_remote_code: bool) -> CacheEntry:
    identity = json.loads(model_key.partition(":")[2])
    source = {"revision": identity.get("revision"), "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(identity["repo_id"], **source)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    count = sum(parameter.nelement() for parameter in module.parameters())
    size = math.ceil(count * bytes_per_element(dtype))
    return CacheEntry(size, count, config, source["revision"], dtype, trust_remote_code, max_tp=None)


class CPUController(_ControllerActor):
    """The controller, with an evaluator that needs no hub. Models are deployed afterwards, not by its constructor."""

    def __init__(self, deployments: list[str], **settings: Any) -> None:
        super().__init__([], **settings)
        self.cluster.evaluator = ConfigEvaluator(
            padding_factor=self.default_padding_factor, padding_bias=self.default_padding_bias
        )


@ray.remote(num_cpus=0, max_restarts=-1, resources={"head": 1})
class CPUControllerActor(CPUController):
    pass
