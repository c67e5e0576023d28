"""Loading: where each model goes, and what is refused before anything is read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.harness import loading
from lm_eval_hybrid.harness.arguments import HybridArguments
from lm_eval_hybrid.harness.hybrid_lm import HybridLM
from lm_eval_hybrid.models.placement import Machine
from lm_eval_hybrid.models.sources import ModelSource
from tests.tiny_system import TinySystem, write_system

PROMPTS = ("Question: 3 + 4?\nAnswer:", "Hello there")
GIB = 2**30


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> TinySystem:
    return write_system(tmp_path_factory.mktemp("system"))


def answers(system: TinySystem, **arguments: Any) -> list[str]:
    asked = {"until": ["\n"], "max_gen_toks": 16}
    requests = [Instance("generate_until", {}, (prompt, asked), 0, ("task", i, 1)) for i, prompt in enumerate(PROMPTS)]
    return HybridLM(**system.arguments, **arguments).generate_until(requests, disable_tqdm=True)


def settle(machine: Machine, theirs: dict[str, Any] | None = None, **ours: Any) -> dict[str, str]:
    given = {"device": "cuda", **(theirs or {})}
    return dict(loading.device_wishes(HybridArguments(**ours), given, machine).devices)


def test_devices_of_each_model_change_no_answer(system: TinySystem) -> None:
    expected = answers(system)
    assert answers(system, base_device="cpu", thinking_device="cpu") == expected


def test_weights_that_are_offloaded_change_no_answer(system: TinySystem, tmp_path: Path) -> None:
    arguments = {"parallelize": True, "max_cpu_memory": "100KiB", "offload_folder": str(tmp_path)}
    assert "disk" in HybridLM(**system.arguments, **arguments).model.hf_device_map.values()
    assert answers(system, **arguments) == answers(system)


@pytest.mark.parametrize("arguments", [{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True}])
def test_both_models_may_have_quantised_weights(system: TinySystem, arguments: dict[str, Any]) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    kind = bitsandbytes.nn.Linear4bit if "load_in_4bit" in arguments else bitsandbytes.nn.Linear8bitLt
    model = HybridLM(**system.arguments, **arguments)
    thinking = model._thinking_model[1].model  # type: ignore[index]
    for each in (model.model, thinking):
        assert isinstance(each.model.layers[0].mlp.up_proj, kind)
        assert not isinstance(each.lm_head, kind)
    request = Instance("generate_until", {}, (PROMPTS[0], {"until": [], "max_gen_toks": 4}), 0, ("task", 0, 1))
    assert model.generate_until([request], disable_tqdm=True)[0]


def test_a_batch_beyond_all_memory_is_refused_before_anything_is_loaded(system: TinySystem) -> None:
    with pytest.raises(HybridError, match=r"more memory than there is: needed base .* thinking .*batch_size=\d+"):
        HybridLM(**system.arguments, batch_size=10**9)
    with pytest.raises(HybridError) as caught:
        HybridLM(**system.arguments, batch_size=10**9, arm="base")
    assert "thinking " not in str(caught.value).partition("there is")[0]
    HybridLM(**system.arguments, batch_size="auto")


def test_a_model_that_is_never_read_takes_its_weights_alone(system: TinySystem) -> None:
    with pytest.raises(HybridError, match=r"needed base 0 MiB \(weights 0 MiB, 0 texts"):
        HybridLM(**system.arguments, batch_size=10**9, arm="thinking")


def test_what_cannot_be_sized_is_left_to_loading(system: TinySystem, tmp_path: Path) -> None:
    with pytest.raises(HybridError, match="cannot load the thinking model and its tokenizer from"):
        HybridLM(**system.arguments, thinking=str(tmp_path / "nowhere"))


def test_devices_that_are_settled() -> None:
    one, two = Machine((24 * GIB,), GIB), Machine((24 * GIB,) * 2, GIB)
    assert settle(Machine((), GIB), {"device": "cpu"}) == {"base": "cpu", "thinking": "cpu"}
    assert settle(one) == {"base": "cuda:0", "thinking": "cuda:0"}
    assert settle(two) == {}
    assert settle(two, {"device": "cuda:1"}) == {"base": "cuda:1", "thinking": "cuda:1"}
    assert settle(two, base_device="cuda:1") == {"base": "cuda:1"}
    assert settle(one, base_device="cpu") == {"base": "cpu", "thinking": "cuda:0"}


def test_each_of_several_processes_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    two = Machine((24 * GIB,) * 2, GIB)
    assert settle(two) == {"base": "cuda:1", "thinking": "cuda:1"}
    with pytest.raises(HybridError, match="base_device=cuda:0 conflicts with"):
        settle(two, base_device="cuda:0")


def test_devices_that_are_not_there_are_refused() -> None:
    with pytest.raises(HybridError, match="thinking_device='cuda:1' does not exist here; choose one of cuda:0, cpu"):
        settle(Machine((24 * GIB,), GIB), thinking_device="cuda:1")
    with pytest.raises(HybridError, match=r"base_device=.* conflicts with parallelize=True"):
        settle(Machine((24 * GIB,), GIB), {"parallelize": True}, base_device="cpu")


def test_on_several_gpus_each_model_is_told_where_it_goes(system: TinySystem, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {
        ModelSource.named("base", str(system.base)): True,
        ModelSource.named("thinking", str(system.thinking)): True,
    }
    base, thinking = sources
    theirs = {"device": "cuda", "batch_size": 4, "tokenizer": "other"}

    def told(*gpus: int) -> dict[ModelSource, dict[str, Any]]:
        monkeypatch.setattr(Machine, "local", classmethod(lambda cls: Machine(gpus, GIB)))
        return loading.placed_arguments(sources, HybridArguments(), theirs)

    (need,) = [loading.memory_need(base, theirs, 256)]
    room = int(need.total / 0.9) + 1
    assert told(room, 2 * room + 2)[base] == {**theirs, "device": "cuda:1"}
    assert told(room, room)[base]["device"] != told(room, room)[thinking]["device"]
    assert "tokenizer" not in told(room, room)[thinking]
    split = told(*[room * 3 // 4] * 4)
    assert split[base]["parallelize"] and set(split[base]["max_memory"]) == {0, 1, 2, 3}
    assert sum(split[base]["max_memory"].values()) >= need.size.weights


def test_limits_of_a_split_model_reach_transformers(system: TinySystem) -> None:
    model = loading.LocalModel(
        pretrained=str(system.base), device="cpu", parallelize=True, max_memory={"cpu": "1GiB"}, dtype="float32"
    )
    # Without limits HFLM gives the main memory of a machine without GPUs nothing, and all goes to disk.
    assert {weight.device for weight in model.model.parameters()} == {torch.device("cpu")}
