"""HybridLM by itself: requests in, answers with records out. (With the harness around it: test_tasks.py.)"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from transformers import LlamaForCausalLM

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.policy import ARMS
from lm_eval_hybrid.decoding.records import TokenRecord
from lm_eval_hybrid.harness.hybrid_lm import HybridLM
from lm_eval_hybrid.harness.records import HybridAnswer
from lm_eval_hybrid.models.local import LocalSequences
from tests.tiny_system import CHAT_TEMPLATE, TinySystem, tiny_model, tiny_tokenizer, write_system
from tests.tolerances import approx

PROMPTS = ("Question: 3 + 4?\nAnswer:", "Problem: a longer one, with 5 * 6?\nAnswer:", "1 + 1?", "Hello there")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> TinySystem:
    return write_system(tmp_path_factory.mktemp("system"))


@pytest.fixture(scope="module")
def hybrid(system: TinySystem) -> HybridLM:
    return load(system, batch_size=3)


def load(system: TinySystem, **arguments: Any) -> HybridLM:
    return HybridLM(**{**system.arguments, **arguments})


def requests(*prompts: str, **settings: Any) -> list[Instance]:
    given = {"until": ["\n"], "max_gen_toks": 16, **settings}
    return [Instance("generate_until", {}, (prompt, given), 0, ("task", i, 1)) for i, prompt in enumerate(prompts)]


def answers(model: HybridLM, *prompts: str, **settings: Any) -> list[HybridAnswer]:
    return model.generate_until(requests(*prompts, **settings), disable_tqdm=True)  # type: ignore[return-value]


def records(answer: HybridAnswer) -> tuple[TokenRecord, ...]:
    assert answer.generation is not None
    return answer.generation.records


def test_answers_come_in_the_order_of_requests_whatever_the_batch(hybrid: HybridLM, system: TinySystem) -> None:
    together = answers(hybrid, *PROMPTS)
    assert len(set(together)) == len(PROMPTS)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        (alone,) = answers(hybrid, prompt)
        assert alone == answer
        assert [record.token for record in records(alone)] == [record.token for record in records(answer)]
    assert answers(load(system, batch_size="auto"), *PROMPTS) == together


def test_a_batch_that_does_not_fit_is_halved(system: TinySystem, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answers(load(system, batch_size=1), *PROMPTS)
    for model in (load(system, batch_size="auto", max_batch_size=4), load(system, batch_size=4)):
        read, sizes = LocalSequences.read, []

        def read_two(
            self: LocalSequences, tokens: torch.Tensor, *counts: Any, read: Any = read, sizes: Any = sizes
        ) -> Any:
            sizes.append(len(tokens))
            # Not at once: some tokens of every answer are there already.
            if len(tokens) > 2 and len(sizes) > 6:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return read(self, tokens, *counts)

        with monkeypatch.context() as patch:
            patch.setattr(LocalSequences, "read", read_two)
            assert answers(model, *PROMPTS) == expected
        assert {4, 2} <= set(sizes)
        assert model.get_model_info()["hybrid_totals"]["requests"] == len(PROMPTS)


def test_an_answer_carries_its_records(hybrid: HybridLM) -> None:
    (answer,) = answers(hybrid, PROMPTS[1])
    assert answer == "".join(record.text for record in records(answer))
    assert any(record.steered for record in records(answer))
    assert (answer.arm, answer.bundle.partition("#")[0], answer.thought_open) == ("hybrid", "tiny@1.0.0", False)


def test_the_base_arm_is_hflm_on_the_base_model(system: TinySystem) -> None:
    plain = HFLM(pretrained=str(system.base), device="cpu", batch_size=1)
    texts = plain.generate_until(requests(*PROMPTS), disable_tqdm=True)
    assert answers(load(system, arm="base"), *PROMPTS) == texts
    assert answers(load(system, gate="never"), *PROMPTS) == texts


def test_the_thinking_arm_is_hflm_on_the_thinking_model(system: TinySystem) -> None:
    plain = HFLM(pretrained=str(system.thinking), device="cpu", batch_size=1)
    texts = plain.generate_until(requests(*PROMPTS), disable_tqdm=True)
    assert answers(load(system, arm="thinking"), *PROMPTS) == texts


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_answers(system: TinySystem, arm: str) -> None:
    model = load(system, arm=arm)
    (answer,) = answers(model, PROMPTS[0])
    info = model.get_model_info()
    assert (answer.arm, info["hybrid_arm"]) == (arm, arm)
    assert info["hybrid_totals"]["requests"] == 1


def test_the_model_arguments_reach_the_policy(system: TinySystem) -> None:
    model = load(system, coefficients="0:1", windows=1, gate="always", select="random", seed=3)
    policy = model.get_model_info()["hybrid_policy"]
    assert (policy["coefficients"], policy["windows"], policy["gate"]) == ((0.0, 1.0), (1,), "always")
    assert (policy["select"], policy["seed"]) == ("random", 3)
    (answer,) = answers(model, PROMPTS[0], until=[])
    assert {record.coefficient for record in records(answer)} == {0.0, 1.0}


def test_dtype_reaches_both_models(system: TinySystem) -> None:
    model = load(system, dtype="bfloat16")
    assert model.model.dtype == torch.bfloat16
    assert model._thinking is not None
    assert model._thinking.model.model.dtype == torch.bfloat16
    assert len(answers(model, *PROMPTS)) == len(PROMPTS)


def test_totals_count_each_request_once(system: TinySystem) -> None:
    model = load(system)
    once = requests(*PROMPTS)
    # As the harness pads a rank whose share is short, and as it repeats a task's requests.
    padded = model.generate_until([*once, once[-1], once[-1]], disable_tqdm=True)
    assert padded[-3] == padded[-1]
    totals = model.get_model_info()["hybrid_totals"]
    tokens = [records(answer) for answer in padded[:4] if isinstance(answer, HybridAnswer)]
    assert totals["requests"] == 4
    assert totals["tokens"] == sum(map(len, tokens))
    assert totals["tokens_per_second"] > 0
    assert totals["steered_fraction"] == totals["steered"] / totals["tokens"]
    assert sum(totals["behaviors"].values()) == totals["steered"]


@pytest.mark.parametrize(
    ("prompt", "settings", "complaint"),
    [
        ("", {}, "the prompt of document 1 of task is empty"),
        (
            "x" * 20000,
            {},
            "has 20000 tokens, and max_gen_toks=16; .* base model's context of 16384 tokens",
        ),
        ("x" * 16380, {}, "max_gen_toks=4 or less"),
        ("x", {"num_beams": 2}, "does not support num_beams=2"),
    ],
)
def test_bad_requests_are_refused_in_one_line(
    hybrid: HybridLM, prompt: str, settings: dict[str, Any], complaint: str
) -> None:
    hybrid.get_model_info()
    with pytest.raises(HybridError, match=complaint) as failure:
        answers(hybrid, "a good one", prompt, **settings)
    assert "\n" not in str(failure.value)
    assert hybrid.get_model_info()["hybrid_totals"]["requests"] == 0, "nothing is answered first"


def test_bad_arguments_are_refused_in_one_line(system: TinySystem, tmp_path: Path) -> None:
    mute = tmp_path / "mute"
    shutil.copytree(system.base, mute)
    for file in mute.glob("tokenizer*"):
        file.unlink()
    wide = tmp_path / "wide"
    tiny_model(0, width=64).save_pretrained(wide)
    tiny_tokenizer().save_pretrained(wide)
    for arguments, complaint in (
        ({"behaviors": "no-such-bundle"}, "no-such-bundle"),
        ({"arm": "sideways"}, "arm='sideways' is unknown; choose one of base, hybrid, thinking, takeover"),
        ({"base": str(mute)}, "the base model .* the folder has no tokenizer"),
        ({"thinking": str(mute)}, "the thinking model .* the folder has no tokenizer"),
        ({"base": str(tmp_path / "absent")}, "no such folder"),
        ({"base": str(wide)}, "model has hidden size 64; the bundle, .* needs 32"),
        ({"thinking": str(wide)}, "model has hidden size 64; the bundle, .* needs 32"),
        ({"thinking_prompt": "chat"}, "has no chat template, which a chat prompt needs"),
        ({"batch_size": 0}, "batch_size=0 is not a batch size"),
        ({"batch_size": "x"}, "batch_size='x' is not a batch size"),
        ({"max_batch_size": -1}, "max_batch_size=-1 is not a batch size"),
        ({"dtype": "bf16"}, "the base model .* no attribute 'bf16'"),
        ({"no_such_argument": 1}, "the base model .* unexpected keyword argument 'no_such_argument'"),
    ):
        with pytest.raises(HybridError, match=complaint) as failure:
            load(system, **arguments)
        assert "\n" not in str(failure.value)


def test_the_response_cache_keeps_records_and_refuses_other_policies(
    hybrid: HybridLM, system: TinySystem, tmp_path: Path
) -> None:
    path = str(tmp_path / "cache.db")
    fresh = CachingLM(hybrid, path).generate_until(requests(*PROMPTS))
    hybrid.get_model_info()
    cached = CachingLM(hybrid, path).generate_until(requests(*PROMPTS))
    assert hybrid.get_model_info()["hybrid_totals"]["requests"] == 0, "none was answered again"
    assert [answer.generation for answer in cached] == [answer.generation for answer in fresh]
    with pytest.raises(HybridError, match=r"policy.seed was 0, now 1; .*; give --use_cache another path"):
        CachingLM(load(system, seed=1), path)
    with pytest.raises(HybridError, match="arm was 'hybrid', now 'base'"):
        CachingLM(load(system, arm="base"), path)
    # Batch size and device do not make other answers.
    CachingLM(load(system, batch_size=2, device="cpu"), path)


SCORED = [("1 + 1 =", " 2"), ("1 + 1 = ", "eleven"), ("", "a word"), ("A longer question:", " x")]


def loglikelihoods(model: HFLM) -> list[tuple[float, bool]]:
    return model.loglikelihood(
        [Instance("loglikelihood", {}, texts, 0, ("task", i, 1)) for i, texts in enumerate(SCORED)],
        disable_tqdm=True,
    )


def rolling(model: HFLM) -> list[float]:
    return model.loglikelihood_rolling(
        [Instance("loglikelihood_rolling", {}, ("1 + 1 = 2",), 0, ("task", 0, 1))], disable_tqdm=True
    )


@pytest.mark.parametrize("arm", ["base", "thinking"])
def test_log_likelihoods_of_one_model_are_hflms(system: TinySystem, arm: str) -> None:
    plain = HFLM(pretrained=str(system.base if arm == "base" else system.thinking), device="cpu")
    model = load(system, arm=arm, batch_size=3)
    expected, found = loglikelihoods(plain), loglikelihoods(model)
    assert [score for score, _ in found] == approx([score for score, _ in expected], terms=10)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert rolling(model) == approx(rolling(plain), terms=10)


def test_a_thinking_model_with_words_of_its_own_is_scored_in_them(system: TinySystem, tmp_path: Path) -> None:
    thinking = Path(shutil.copytree(system.thinking, tmp_path / "thinking"))
    tokenizer = json.loads((thinking / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["e"], vocabulary["o"] = vocabulary["o"], vocabulary["e"]
    (thinking / "tokenizer.json").write_text(json.dumps(tokenizer))
    plain = HFLM(pretrained=str(thinking), device="cpu")
    model = load(system, arm="thinking", thinking=str(thinking), batch_size=3)
    expected, found = loglikelihoods(plain), loglikelihoods(model)
    assert [score for score, _ in found] == approx([score for score, _ in expected], terms=10)
    former = loglikelihoods(load(system, arm="thinking"))
    assert [score for score, _ in found] != approx([score for score, _ in former], terms=10)


def test_several_bundles_and_some_behaviors_reach_the_records(system: TinySystem, tmp_path: Path) -> None:
    whole = Bundle.load(system.bundle)
    first, *others = whole.manifest.behaviors
    manifest = whole.manifest.model_copy(update={"name": "lab", "behaviors": (first,)})
    gone = {behavior.tensor for behavior in others}
    lab = Bundle(manifest, {name: tensor for name, tensor in whole.tensors.items() if name not in gone})
    lab.save(tmp_path / "lab" / "1.0.0")
    plain = answers(load(system), *PROMPTS)
    # The same suite in two bundles: a behavior of the first is left to the second.
    names = [str(system.bundle), str(tmp_path / "lab" / "1.0.0")]
    model = load(system, behaviors=names, without=f"tiny/{first.key}")
    joined = answers(model, *PROMPTS)
    assert joined == plain
    assert [records(answer) for answer in joined] == [records(answer) for answer in plain]
    assert model.get_model_info()["hybrid_tensors"] is None
    assert model.get_model_info()["hybrid_bundle"].count("#") == 2
    scaled = load(system, scale=f"[{first.key}*0]")
    without = load(system, without=first.key)
    assert answers(scaled, *PROMPTS) == answers(without, *PROMPTS) != plain
    with pytest.raises(HybridError, match="strict=exact needs the same"):
        load(system, base=str(wider(tmp_path)), strict="exact")


def wider(folder: Path) -> Path:
    """A base with one more layer than the bundle says."""
    model = tiny_model(0)
    model.config.num_hidden_layers += 1
    LlamaForCausalLM(model.config).save_pretrained(folder / "wider")
    tiny_tokenizer().save_pretrained(folder / "wider")
    return folder / "wider"


def test_what_the_hybrid_would_say_is_greedy(hybrid: HybridLM) -> None:
    (answer,) = answers(hybrid, PROMPTS[1], until=[])
    assert any(record.steered for record in records(answer))
    texts = [(PROMPTS[1], str(answer)), (PROMPTS[1], f"{answer[:-1]}~")]
    scores = hybrid.loglikelihood([Instance("loglikelihood", {}, text, 0, ("task", 0, 1)) for text in texts])
    assert [greedy for _, greedy in scores] == [True, False]
    assert scores[1][0] < scores[0][0] < 0


def test_a_chat_template_is_applied_by_one_side_only(tmp_path: Path) -> None:
    system = write_system(tmp_path, CHAT_TEMPLATE, PromptSpec(thinking="chat", prefix="<think>"))
    model = load(system, arm="thinking")
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    templated = model.apply_chat_template(history)
    plain_job, templated_job = (model._job(request, 0) for request in requests("1 + 1?", templated))

    def thinking_reads(job: Any) -> str:
        return model.tokenizer.decode(job.request.prompt.thinking_ids)

    assert thinking_reads(plain_job) == "<user>1 + 1?</user><assistant><think>"
    assert thinking_reads(templated_job) == templated + "<think>"
    assert model.tokenizer.decode(templated_job.request.prompt.base_ids) == templated
    assert plain_job.thought_open
    assert not load(system, arm="hybrid")._job(requests("1 + 1?")[0], 0).thought_open


@pytest.mark.parametrize("form", ["raw", "chat"])
def test_log_likelihoods_read_the_whole_prompt_of_the_thinking_model(tmp_path: Path, form: Any) -> None:
    newline_after = CHAT_TEMPLATE + "{{ '\\n' }}"
    system = write_system(tmp_path, newline_after, PromptSpec(thinking=form, prefix="<think>\n"))
    model, read = load(system), []
    model._decoder.score = lambda prompts, _: read.extend(prompts) or [(0.0, True) for _ in prompts]  # type: ignore
    templated = model.apply_chat_template([{"role": "user", "content": "1 + 1?"}])
    assert templated.endswith("\n")
    model.loglikelihood([Instance("loglikelihood", {}, (text, "2"), 0, ("t", 0, 1)) for text in ("1 + 1? ", templated)])
    texts = {model.tokenizer.decode(prompt.thinking_ids) for prompt in read}
    plain = "<user>1 + 1?</user><assistant>\n<think>\n" if form == "chat" else "1 + 1?<think>\n"
    assert texts == {plain, "<user>1 + 1?</user><assistant><think>\n"}


def test_a_replaced_checkpoint_is_another_model(system: TinySystem, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(system.base, folder)
    path = str(tmp_path / "cache.db")
    CachingLM(load(system, base=str(folder), arm="base"), path)
    tiny_model(7).save_pretrained(folder)
    with pytest.raises(HybridError, match="filled by a different run: base was "):
        CachingLM(load(system, base=str(folder), arm="base"), path)


def test_a_chat_template_must_exist(hybrid: HybridLM) -> None:
    with pytest.raises(HybridError, match="has no chat template, which --apply_chat_template needs"):
        hybrid.apply_chat_template([{"role": "user", "content": "1 + 1?"}])


def test_repeats_of_a_sampled_request_are_answers_of_their_own(system: TinySystem) -> None:
    """As the harness asks: the request repeated, and the last one padded where ranks have unequal shares."""
    model = load(system, batch_size=2)

    def asked(**settings: Any) -> list[HybridAnswer]:
        (request,) = requests(PROMPTS[1], **settings)
        request.repeats = 3
        return model.generate_until([request] * 4, disable_tqdm=True)  # type: ignore[return-value]

    drawn = asked(temperature=1.0, until=[])
    assert len(set(drawn)) == 3
    assert drawn[2] is drawn[3]
    assert model.get_model_info()["hybrid_totals"]["requests"] == 3
    assert asked(temperature=1.0, until=[]) == drawn
    assert asked(temperature=1.0, until=[], seed=5) != drawn
    greedy = asked()
    assert len(set(greedy)) == 1
    assert model.get_model_info()["hybrid_totals"]["requests"] == 7


def test_one_answer_at_a_time_samples_as_many_do(system: TinySystem) -> None:
    settings = {"temperature": 0.8, "top_p": 0.9, "until": []}
    alone, together = (answers(load(system, batch_size=size), *PROMPTS, **settings) for size in (1, 4))
    assert alone == together
