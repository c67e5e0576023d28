"""Loads the two models through HFLM: placed on devices by size, quantised where asked, or left on an NDIF server.

Sizes are computed before any weights are read, so a model that does not fit is refused at once.
"""

import logging
from collections.abc import Mapping
from typing import Any

from accelerate.utils import convert_file_size_to_int
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, BitsAndBytesConfig

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.harness.arguments import HybridArguments
from lm_eval_hybrid.harness.runtime import local_rank, processes
from lm_eval_hybrid.models import sizes
from lm_eval_hybrid.models.ndif.client import NdifModel, Server
from lm_eval_hybrid.models.placement import Machine, ModelNeed, Placement, PlacementOptions, place_models
from lm_eval_hybrid.models.sources import ModelSource

_log = logging.getLogger(__name__)

REMOTE_BATCH = 8
"""Documents decoded together with `batch_size=auto` and remote models, since the server's free memory is unknown."""

_TOKENS = 256
"""Length assumed for a sequence while the tasks are not known: the harness's default limit of an answer."""

# Arguments of HFLM that apply to the base only; all others apply to both models.
_BASE_ONLY = {
    "subfolder",
    "tokenizer",
    "prefix_token_id",
    "peft",
    "delta",
    "autogptq",
    "gptqmodel",
    "gguf_file",
}
# Arguments of BitsAndBytesConfig. transformers takes only the object, which a command line cannot express.
_QUANTIZATION = ("load_in_4bit", "load_in_8bit", "bnb_4bit_", "llm_int8_")
# Arguments of HFLM that have an effect for a remote model.
_REMOTE = {
    "add_bos_token",
    "batch_size",
    "chat_template_args",
    "max_batch_size",
    "max_gen_toks",
    "max_length",
    "prefix_token_id",
    "trust_remote_code",
}
# Arguments that have none but are harmless, or that the harness itself passes.
_REMOTE_NEUTRAL = {"device", "dtype", "logits_cache"}


class LocalModel(HFLM):
    """HFLM with quantisation arguments (`load_in_4bit`, `load_in_8bit`, ...) and a memory limit per GPU."""

    _limits: dict[int, int] | None = None

    def _create_model(self, *args: Any, **kwargs: Any) -> None:
        quantization = {name: kwargs.pop(name) for name in [*kwargs] if name.startswith(_QUANTIZATION)}
        if sizes.requested_bits(quantization):
            kwargs["quantization_config"] = BitsAndBytesConfig(**quantization)
        self._limits = kwargs.pop("max_memory", None)
        super()._create_model(*args, **kwargs)

    def _set_rank_from_accelerator(self) -> None:
        """Set rank and world size, which HFLM does only with several GPUs."""
        if hasattr(self, "accelerator"):
            self._rank = self.accelerator.process_index
            self._world_size = self.accelerator.num_processes

    def _get_accelerate_args(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        found: dict[str, Any] = super()._get_accelerate_args(*args, **kwargs)
        return found if self._limits is None else {**found, "max_memory": self._limits}


class Loader:
    """Works out the arguments that HFLM is constructed with, for the models of one hybrid.

    Args:
        theirs: the user's arguments for HFLM; `device` must be among them.

    Attributes:
        remote: the models on a server, by role.
    """

    def __init__(self, ours: HybridArguments, theirs: Mapping[str, Any]) -> None:
        self._ours, self._theirs = ours, theirs
        self._server = ours.server() if "remote" in ours.backends.values() else None
        self._placed: dict[ModelSource, dict[str, Any]] = {}
        self.remote: dict[str, NdifModel] = {}

    def place(self, models: Mapping[ModelSource, bool]) -> None:
        """Assign devices to models that will be loaded one after the other; remote ones need none.

        Args:
            models: whether the policy reads each; one that is not read needs memory for its weights only.

        Raises:
            HybridError: they do not fit, or a device does not exist.
        """
        local = {source: read for source, read in models.items() if self._ours.backends[source.role] == "local"}
        if local:
            self._placed |= placed_arguments(local, self._ours, self._theirs)

    def arguments(self, source: ModelSource) -> dict[str, Any]:
        """The arguments that HFLM is constructed with, around a local or remote model.

        Raises:
            HybridError: the model does not fit, or the server does not have it.
        """
        if self._server is not None and self._ours.backends[source.role] == "remote":
            given = arguments_for(self._theirs, source.role)
            self.remote[source.role] = remote_model(source, self._server, given.get("tokenizer"), given)
            return _around_skeleton(self.remote[source.role], given)
        if source not in self._placed:
            self.place({source: True})
        return {"pretrained": source.name, "revision": source.revision, **self._placed.pop(source)}

    def identity(self, source: ModelSource, config: Any) -> str:
        """A string that tells models apart between runs; for a remote one it holds a digest of sampled weights."""
        remote = self.remote.get(source.role)
        return source.identity(config) if remote is None else f"{source.name}@remote:{remote.weights}"

    def check_same_backends(self, ours: HybridArguments) -> None:
        """Check that other arguments leave each model local or remote, as it is.

        Raises:
            HybridError: they do not.
        """
        before, now = self._ours.backends, ours.backends
        if before != now:
            raise HybridError(
                f"base_backend={now['base']}, thinking_backend={now['thinking']} differ from the loaded models' "
                f"{before['base']} and {before['thinking']}; all arms of a run must share them; use a separate run"
            )


def arguments_for(theirs: Mapping[str, Any], role: str) -> dict[str, Any]:
    """The user's arguments for HFLM that apply to model `role`."""
    return {name: value for name, value in theirs.items() if role == "base" or name not in _BASE_ONLY}


def placed_arguments(
    models: Mapping[ModelSource, bool], ours: HybridArguments, theirs: Mapping[str, Any]
) -> dict[ModelSource, dict[str, Any]]:
    """HFLM's arguments for local models, devices included; `models` as in `Loader.place`."""
    machine = Machine.local()
    wishes = device_wishes(ours, theirs, machine)
    own = {source: arguments_for(theirs, source.role) for source in models}
    try:
        needs = [memory_need(source, theirs, _TOKENS, read) for source, read in models.items()]
    except HybridError:
        # Whatever hides a model's size will also keep it from loading, and that error is clearer.
        for source in models:
            if source.role in wishes.devices:
                own[source]["device"] = wishes.devices[source.role]
        return own
    places = place_models(needs, machine, wishes)
    for source in models:
        if not wishes.offload:
            own[source] |= _device_arguments(places[source.role])
    if len(machine.gpus) > 1:
        _log.info("Placing %s", ", ".join(f"{role} on {' and '.join(p.parts)}" for role, p in places.items()))
    return own


def device_wishes(ours: HybridArguments, theirs: Mapping[str, Any], machine: Machine) -> PlacementOptions:
    """What the arguments say about where models go.

    Raises:
        HybridError: a device that does not exist, or arguments that contradict each other.
    """
    named = {"base": ours.base_device, "thinking": ours.thinking_device}
    several = processes() > 1
    known = list(machine.free)
    for role, device in named.items():
        if device is None:
            continue
        if theirs.get("parallelize") or several:
            reason = "several processes, each with its own GPU" if several else "parallelize=True, which uses all GPUs"
            raise HybridError(f"{role}_device={device} conflicts with {reason}; leave one of them out")
        if device not in known:
            raise HybridError(f"{role}_device={device!r} does not exist here; choose one of {', '.join(known)}")
    if theirs.get("parallelize") and not machine.gpus and not theirs.get("max_cpu_memory"):
        raise HybridError(
            "parallelize=True splits models over GPUs, and this machine has none; leave it out, or say how much may "
            "stay in main memory, as in max_cpu_memory=16GiB"
        )
    device = str(theirs["device"])
    if device == "cuda" and several:
        device = f"cuda:{local_rank()}"
    elif device == "cuda" and len(machine.gpus) == 1:
        device = "cuda:0"
    gpu_limit, cpu_limit = (theirs.get(name) for name in ("max_memory_per_gpu", "max_cpu_memory"))
    return PlacementOptions(
        devices={role: name or device for role, name in named.items() if name or device != "cuda"},
        offload=bool(theirs.get("parallelize")),
        gpu_limit=None if gpu_limit is None else convert_file_size_to_int(gpu_limit),
        cpu_limit=0 if cpu_limit is None else convert_file_size_to_int(cpu_limit),
    )


def memory_need(source: ModelSource, theirs: Mapping[str, Any], tokens: int, read: bool = True) -> ModelNeed:
    """The memory of a model with the batch size that the arguments give; 1 for `auto`.

    Raises:
        HybridError: see `lm_eval_hybrid.models.sizes.model_footprint`.
    """
    given = str(theirs.get("batch_size") or 1)
    rows = 1 if given.startswith("auto") else int(given)
    return ModelNeed(
        source.role, sizes.model_footprint(source, arguments_for(theirs, source.role)), rows if read else 0, tokens
    )


def remote_model(source: ModelSource, server: Server, tokenizer: str | None, theirs: Mapping[str, Any]) -> NdifModel:
    """A model on an NDIF server.

    Args:
        tokenizer: a tokenizer to use instead of the model's own.
        theirs: the user's arguments for HFLM.

    Raises:
        HybridError: arguments about how the model is loaded, or the server cannot serve it.
    """
    if unsupported := sorted(set(theirs) - _REMOTE - _REMOTE_NEUTRAL - {"tokenizer"}):
        name = unsupported[0]
        raise HybridError(
            f"{name}={theirs[name]} is not supported for a remote model: the server decides how it is loaded; leave it "
            "out"
        )
    trust = bool(theirs.get("trust_remote_code"))
    with source.loading(needs_tokenizer=tokenizer is None):
        loaded = AutoTokenizer.from_pretrained(
            tokenizer or source.name, revision=None if tokenizer else source.revision, trust_remote_code=trust
        )
        # The server serves one revision of a model unless another is requested.
        revision = None if source.revision == "main" else source.revision
        return NdifModel.at(server, source.name, revision, loaded, source.role, trust)


def _around_skeleton(model: NdifModel, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """HFLM's arguments around the weightless skeleton, so that the harness finds tokenizer and configuration."""
    kept = {name: value for name, value in theirs.items() if name in _REMOTE}
    return {"pretrained": model.skeleton, "tokenizer": model.tokenizer, **kept}


def _device_arguments(found: Placement) -> dict[str, Any]:
    if found.device is not None:
        return {"device": found.device}
    return {"parallelize": True, "max_memory": dict(found.limits)}
