"""Loading the two models through HFLM: each where there is room for it, with weights in 4 or 8 bits where asked for.

Sizes are known before anything is loaded, so what does not fit is said at once, not after minutes of reading weights.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any

from accelerate.utils import convert_file_size_to_int
from lm_eval.models.huggingface import HFLM
from transformers import BitsAndBytesConfig

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.harness.arguments import HybridArguments
from lm_eval_hybrid.harness.remote import as_hflm, remote_model
from lm_eval_hybrid.models import sizes
from lm_eval_hybrid.models.devices import Machine
from lm_eval_hybrid.models.ndif.model import NdifModel
from lm_eval_hybrid.models.placement import Need, Place, Wishes, place
from lm_eval_hybrid.models.sources import Source

_log = logging.getLogger(__name__)

_TOKENS = 256
"""Of a text, counted on where nothing is known of the tasks yet: what the harness lets an answer have by itself."""

# Arguments of HFLM that speak of one model, the base; the others hold for both.
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
# Of BitsAndBytesConfig. transformers takes them as one object only, which a command line cannot write.
_QUANTISING = ("load_in_4bit", "load_in_8bit", "bnb_4bit_", "llm_int8_")


class LocalModel(HFLM):
    """HFLM that takes `load_in_4bit`, `load_in_8bit` and their like, and a limit for each GPU (`max_memory`)."""

    _limits: dict[int, int] | None = None

    def _create_model(self, *args: Any, **kwargs: Any) -> None:
        quantising = {name: kwargs.pop(name) for name in [*kwargs] if name.startswith(_QUANTISING)}
        if sizes.bits(quantising):
            kwargs["quantization_config"] = BitsAndBytesConfig(**quantising)
        self._limits = kwargs.pop("max_memory", None)
        super()._create_model(*args, **kwargs)

    def _join_ranks(self) -> None:
        """Take rank and world size from the accelerator, which HFLM does only where there are several GPUs."""
        if hasattr(self, "accelerator"):
            self._rank = self.accelerator.process_index
            self._world_size = self.accelerator.num_processes

    def _get_accelerate_args(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        found = super()._get_accelerate_args(*args, **kwargs)
        return found if self._limits is None else {**found, "max_memory": self._limits}


def shared(theirs: Mapping[str, Any], role: str) -> dict[str, Any]:
    """Those of HFLM's arguments that hold for model `role`."""
    return {name: value for name, value in theirs.items() if role == "base" or name not in _BASE_ONLY}


class Loader:
    """Says what HFLM is made with, for models of one system.

    Args:
        theirs: what the user gave HFLM; `device` is given.

    Attributes:
        remote: by role, those that are on a server.
    """

    def __init__(self, ours: HybridArguments, theirs: Mapping[str, Any]) -> None:
        self._ours, self._theirs = ours, theirs
        self._backends = _backends(ours)
        self._server = ours.server() if "remote" in self._backends.values() else None
        self._placed: dict[Source, dict[str, Any]] = {}
        self.remote: dict[str, NdifModel] = {}

    def place(self, models: Mapping[Source, bool]) -> None:
        """Find room for models that are to be loaded one after the other; those on a server need none.

        Args:
            models: whether each is read; one that is not takes no more than its weights.

        Raises:
            HybridError: they do not fit, or a device is not there.
        """
        here = {source: read for source, read in models.items() if self._backends[source.role] == "local"}
        if here:
            self._placed |= arguments(here, self._ours, self._theirs)

    def arguments(self, source: Source) -> dict[str, Any]:
        """All that HFLM is made with, around a model here or on a server.

        Raises:
            HybridError: there is no room for it, or no server that has it.
        """
        if self._server is not None and self._backends[source.role] == "remote":
            given = shared(self._theirs, source.role)
            self.remote[source.role] = remote_model(source, self._server, given.get("tokenizer"), given)
            return as_hflm(self.remote[source.role], given)
        if source not in self._placed:
            self.place({source: True})
        return {"pretrained": source.name, "revision": source.revision, **self._placed.pop(source)}

    def identity(self, source: Source, config: Any) -> str:
        """What says whether another run's model was the same one; of a remote one by a digest of its weights, told."""
        remote = self.remote.get(source.role)
        return source.identity(config) if remote is None else f"{source.name}@remote:{remote.weights}"

    def check(self, ours: HybridArguments) -> None:
        """Check that other arguments leave models where they are.

        Raises:
            HybridError: they do not.
        """
        then, now = self._backends, _backends(ours)
        if then != now:
            raise HybridError(
                f"models must stay where they are, base_backend={then['base']}, thinking_backend={then['thinking']}; "
                f"found {now['base']} and {now['thinking']}; run that by itself"
            )


def arguments(
    models: Mapping[Source, bool], ours: HybridArguments, theirs: Mapping[str, Any]
) -> dict[Source, dict[str, Any]]:
    """HFLM's arguments for models that are loaded here, but which model it is; as `Loader.place` takes them."""
    machine = Machine.here()
    settled = wishes(ours, theirs, machine)
    own = {source: shared(theirs, source.role) for source in models}
    try:
        needs = [need(source, theirs, _TOKENS, read) for source, read in models.items()]
    except HybridError:
        # What keeps a size from being known keeps the model from being loaded, which then says it better.
        return {source: {**own[source], **_named(settled, source.role)} for source in models}
    places = place(needs, machine, settled)
    for source in models:
        if not settled.offload:
            own[source] |= _put(places[source.role])
    if len(machine.gpus) > 1:
        spots = ", ".join(f"{role} on {' and '.join(found.parts)}" for role, found in places.items())
        _log.info("Placing %s", spots)
    return own


def wishes(ours: HybridArguments, theirs: Mapping[str, Any], machine: Machine) -> Wishes:
    """What the arguments settle of where models go.

    Raises:
        HybridError: they name a device that is not there, or contradict one another.
    """
    named = {"base": ours.base_device, "thinking": ours.thinking_device}
    ranks = int(os.environ.get("WORLD_SIZE", "1")) > 1
    known = list(machine.rooms)
    for role, device in named.items():
        if device is None:
            continue
        if theirs.get("parallelize") or ranks:
            reason = "several processes, each with a GPU of its own" if ranks else "parallelize=True, all GPUs for both"
            raise HybridError(f"{role}_device must stand alone; found {reason}; leave one out")
        if device not in known:
            raise HybridError(f"{role}_device must be one of {', '.join(known)}; found {device!r}; choose one")
    if theirs.get("parallelize") and not machine.gpus and not theirs.get("max_cpu_memory"):
        raise HybridError(
            "parallelize=True splits models over GPUs; found none, and no max_cpu_memory=; leave it out, or say how "
            "much stays in main memory, as in max_cpu_memory=16GiB"
        )
    device = str(theirs["device"])
    if device == "cuda" and ranks:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    elif device == "cuda" and len(machine.gpus) == 1:
        device = "cuda:0"
    limit, beyond = (theirs.get(name) for name in ("max_memory_per_gpu", "max_cpu_memory"))
    return Wishes(
        devices={role: name or device for role, name in named.items() if name or device != "cuda"},
        offload=bool(theirs.get("parallelize")),
        gpu_limit=None if limit is None else convert_file_size_to_int(limit),
        cpu_limit=0 if beyond is None else convert_file_size_to_int(beyond),
    )


def need(source: Source, theirs: Mapping[str, Any], tokens: int, read: bool = True) -> Need:
    """What a model takes with as many texts at once as the arguments say; one where that is left to the memory.

    Raises:
        HybridError: see `lm_eval_hybrid.models.sizes.size_of`.
    """
    asked = str(theirs.get("batch_size") or 1)
    rows = 1 if asked.startswith("auto") else int(asked)
    return Need(source.role, sizes.size_of(source, shared(theirs, source.role)), rows if read else 0, tokens)


def _backends(ours: HybridArguments) -> dict[str, str]:
    return {"base": ours.base_backend, "thinking": ours.thinking_backend}


def _put(found: Place) -> dict[str, Any]:
    if found.device is not None:
        return {"device": found.device}
    return {"parallelize": True, "max_memory": dict(found.limits)}


def _named(settled: Wishes, role: str) -> dict[str, Any]:
    return {"device": settled.devices[role]} if role in settled.devices else {}
