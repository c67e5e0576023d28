import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lm_eval_hybrid import __version__
from lm_eval_hybrid.bundles import contents
from lm_eval_hybrid.commands.discover import STEPS
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.discovery import bundling
from lm_eval_hybrid.discovery.calibration import SCORES_FILE
from lm_eval_hybrid.discovery.pipeline import GRADES_FILE, TRACES_FILE, DiscoveryResult, DiscoveryRun
from lm_eval_hybrid.discovery.plan import DiscoveryPlan
from lm_eval_hybrid.discovery.recipe import DiscoveryRecipe
from lm_eval_hybrid.discovery.stages import DONE_FILE, WorkFolder
from lm_eval_hybrid.discovery.traces.pair import ModelPair
from lm_eval_hybrid.discovery.traces.trace import Trace, digest
from lm_eval_hybrid.models.local import LocalBackend
from tests.discovery.conftest import RAW, Studied
from tests.judging.judge_server import JudgeServer, never_wait
from tests.tiny_system import tiny_model, tiny_tokenizer

FIELDS: dict[str, Any] = {
    "description": "DiscoveryResult in noise.",
    "license": "MIT",
    "authors": ("tests",),
    "citation": "",
    "base": "the/base",
    "thinking": "the/thinking",
    "prompt": {"thinking": "raw"},
    "traces": {"count": 12, "max_new_tokens": 40, "holdout": 0.25},
    "seed": 0,
    "sae": {"layers": [2, 1], "sizes": [3], "k": 1, "seeds": 1, "steps": 5, "baselines": []},
    "vectors": {"recipe": "disagreement", "layer": 1, "bias_epochs": 1, "epochs": 1, "seeds": 2, "hidden": 4},
    "calibration": {
        "problems": 3,
        "max_new_tokens": 8,
        "settings": [{"select": "mlp"}, {"coefficients": [0.5, 1.0]}],
    },
}
MODELS = {"base": "one float32", "thinking": "another float32"}


def write_problems(path: Path, count: int = 20) -> Path:
    rows = [{"question": f"Question {i}: one. two?", "answer": str(i)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(folder: Path, **changes: Any) -> DiscoveryRecipe:
    """A recipe for a tiny pair and problems in `folder`; a change that is a dict updates the fields of that part."""
    path = folder / "problems.jsonl"
    if not path.exists():
        write_problems(path)
    fields = {**FIELDS, "problems": [{"data": str(path), "prompt": "{question}"}]}
    for name, change in changes.items():
        whole = isinstance(change, dict) and isinstance(fields.get(name), dict)
        fields[name] = {**fields[name], **change} if whole else change
    return DiscoveryRecipe.model_validate(fields)


def plan(made: DiscoveryRecipe, work: Path, samples: Sequence[Trace] = ()) -> DiscoveryPlan:
    return DiscoveryPlan(made, WorkFolder(work), MODELS, tuple(samples))


def found_by(made: DiscoveryRecipe, pair: ModelPair, work: Path, samples: Sequence[Trace] = ()) -> DiscoveryResult:
    found = DiscoveryRun(plan(made, work, samples), pair).run()
    assert found is not None
    return found


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The files below a folder, without the lock."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.stem}


def times_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def stages_in(folder: Path) -> list[str]:
    return sorted(path.parent.name.rpartition("-")[0] for path in folder.glob(f"*/{DONE_FILE}"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def found(studied: Studied, place: Path) -> DiscoveryResult:
    return found_by(recipe(place), studied.pair, place / "work")


def test_the_manifest_names_models_data_and_settings(
    studied: Studied, found: DiscoveryResult, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studied.thinking.config, "_commit_hash", "c0ffee", raising=False)
    made = recipe(place)
    card = bundling.make_bundle(found, studied.pair, made, "mine", "0.1.0").save(tmp_path / "mine" / "0.1.0").manifest
    assert not contents.faults(tmp_path / "mine" / "0.1.0")
    assert (card.name, card.version, card.base.revision, card.thinking.revision) == ("mine", "0.1.0", None, "c0ffee")
    assert (card.base.id, card.thinking.id) == ("the/base", "the/thinking")
    assert card.training.data == f"12 traces of the/thinking on problems of {place / 'problems.jsonl'}"
    assert card.training.data_sha256 == digest(found.traces) and card.training.code_version == __version__
    assert DiscoveryRecipe.model_validate_json(card.training.recipe) == made
    assert card.training.seed == found.calibration.fit
    chosen = found.calibration.setting
    assert (card.steering.select, card.steering.coefficients, card.steering.windows) == (
        chosen.select,
        chosen.coefficients,
        chosen.windows,
    )
    assert (card.steering.layer, card.sae.layer, card.sae.latents, card.sae.k) == (1, found.chosen.layer, 3, 1)
    assert card.prompt == RAW
    files = (Path("far/samples_a.jsonl"), Path("samples_b.jsonl"))
    card = bundling.make_bundle(found, studied.pair, made, "mine", "0.1.0", files).manifest
    assert card.training.data == "12 traces of the/thinking in samples_a.jsonl, samples_b.jsonl"


@torch.no_grad()
def test_holdout_metrics_are_those_of_a_plain_loop(studied: Studied, found: DiscoveryResult, place: Path) -> None:
    """Each model reads each prefix alone, and each steered token is computed from the first token on."""
    bundle = bundling.make_bundle(found, studied.pair, recipe(place), "mine", "0.1.0")
    holdout, fitted = bundle.manifest.training.holdout, found.fitted
    base, thinking = (b.model._module for b in (studied.base, studied.thinking))
    network, places, opened = fitted.network, 0, 0
    assert network is not None
    hits, bias_hits, losses = [], [], {"loss": [], "loss_bias_only": [], "loss_unsteered": []}
    for trace in found.traces[9:]:  # the held-out traces
        prompt = studied.base.tokenizer(trace.prompt).input_ids
        ids = [*prompt, *studied.base.tokenizer(trace.text).input_ids, studied.base.tokenizer.eos_token_id]
        row = torch.tensor([ids])
        said, ours = thinking(row).logits[0].argmax(-1), base(row).logits[0].argmax(-1)
        residual = thinking(row, output_hidden_states=True).hidden_states[found.chosen.layer + 1][0]
        read = base(row, output_hidden_states=True).hidden_states[bundle.manifest.steering.layer + 1][0]
        for at in range(len(prompt) - 1, len(ids) - 1):
            places, opened = places + 1, opened + int(said[at] != ours[at])
            if said[at] == ours[at]:
                continue
            category = found.chosen.sae.encoder.category(residual[at][None])
            coefficient = network.coefficient(read[at][None], category)
            direction = coefficient * (fitted.bias + fitted.vectors[category[0]])
            kinds = {"loss": direction, "loss_bias_only": fitted.bias, "loss_unsteered": torch.zeros_like(direction)}
            for kind, added in kinds.items():
                logits = steered(base, ids[: at + 1], bundle.manifest.steering.layer, added)
                losses[kind].append(-logits.log_softmax(-1)[said[at]].item())
                if kind != "loss_unsteered":
                    (hits if kind == "loss" else bias_hits).append(logits.argmax() == said[at])
    assert bundle.manifest.steering.gate_rate == holdout["gate_rate"] == round(opened / places, 4)
    assert holdout["hit_rate"] == round(sum(map(int, hits)) / len(hits), 4)
    assert holdout["hit_rate_bias_only"] == round(sum(map(int, bias_hits)) / len(bias_hits), 4)
    for kind, values in losses.items():
        assert holdout[kind] == pytest.approx(sum(values) / len(values), abs=2e-4)
    onsets = found.activations[found.held_out.nonzero()[:, 0]]
    assert holdout["explained_variance"] == pytest.approx(found.chosen.sae.explained(onsets), abs=1e-4)
    assert "gap_recovered" not in holdout


def steered(model: torch.nn.Module, ids: list[int], layer: int, added: torch.Tensor) -> torch.Tensor:
    """Logits after `ids`, with a vector added to the last residual after a layer."""

    def hook(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[0, -1] += added.reshape(-1)
        return output

    handle = model.model.layers[layer].register_forward_hook(hook)
    try:
        return model(torch.tensor([ids])).logits[0, -1]
    finally:
        handle.remove()


def test_the_gap_is_that_of_the_chosen_setting(studied: Studied, found: DiscoveryResult, place: Path) -> None:
    trials = tuple(
        replace(trial, gap=replace(trial.gap, recovered=0.25 * index))
        for index, trial in enumerate(found.calibration.trials)
    )
    known = replace(found, calibration=replace(found.calibration, trials=trials))
    chosen = [known.calibration.is_chosen(trial) for trial in trials].index(True)
    holdout = bundling.make_bundle(known, studied.pair, recipe(place), "mine", "0.1.0").manifest.training.holdout
    assert holdout["gap_recovered"] == 0.25 * chosen


def test_a_second_run_writes_nothing(studied: Studied, found: DiscoveryResult, place: Path, tmp_path: Path) -> None:
    before = times_of(place / "work")
    again = found_by(recipe(place), studied.pair, place / "work")
    assert times_of(place / "work") == before
    first, second = (bundling.make_bundle(f, studied.pair, recipe(place), "mine", "0.1.0") for f in (found, again))
    assert first.save(tmp_path / "a").identity == second.save(tmp_path / "b").identity


def test_a_run_in_another_folder_writes_the_same_bytes(
    studied: Studied, found: DiscoveryResult, place: Path, tmp_path: Path
) -> None:
    found_by(recipe(place), studied.pair, tmp_path)
    assert bytes_of(tmp_path) == bytes_of(place / "work")


ALL = ["activations", "calibration", "gates", "sae-1", "sae-2", "traces", "vectors-0", "vectors-1"]


@pytest.mark.parametrize(
    ("change", "new"),
    [
        ({"vectors": {"rate": 0.01}}, ["calibration", "vectors-0", "vectors-1"]),
        ({"vectors": {"seeds": 3}}, ["calibration", "vectors-2"]),
        ({"calibration": {"max_new_tokens": 6}}, ["calibration"]),
        ({"calibration": {"problems": 0}}, []),
        ({"sae": {"layers": [1], "sizes": [3]}}, [name for name in ALL if name not in ("traces", "sae-2")]),
        ({"sae": {"steps": 4}}, [name for name in ALL if name not in ("traces", "activations")]),
        ({"activation": "mean"}, [name for name in ALL if name not in ("traces", "activations")]),
        ({"traces": {"holdout": 0.3}}, [name for name in ALL if name not in ("traces", "activations")]),
        ({"description": "Other words.", "license": "Apache-2.0"}, []),
        ({"seed": 1}, [*ALL[:6], "vectors-1", "vectors-2"]),
        ({"base": "the same elsewhere"}, []),
    ],
    ids=["vectors", "seeds", "calibration", "none", "layers", "sae", "activation", "holdout", "words", "seed", "name"],
)
def test_a_change_renames_only_the_stages_that_depend_on_it(
    found: DiscoveryResult, place: Path, change: dict[str, Any], new: list[str]
) -> None:
    """Compares plans; the next test runs one."""
    former = {stage.folder for stage in plan(recipe(place), place / "work").stages}
    changed = plan(recipe(place, **change), place / "work")
    assert sorted(stage.name for stage in changed.stages if stage.folder not in former) == sorted(new)


def test_a_changed_rate_redoes_only_vectors_and_calibration(
    studied: Studied, found: DiscoveryResult, place: Path
) -> None:
    before = times_of(place / "work")
    found_by(recipe(place, vectors={"rate": 0.01}), studied.pair, place / "work")
    after = times_of(place / "work")
    assert {name: after[name] for name in before} == before
    made = {name.partition("/")[0].rpartition("-")[0] for name in after.keys() - before.keys()}
    assert made == {"vectors-0", "vectors-1", "calibration"}


def test_a_changed_file_of_problems_changes_the_digests(place: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path)
    former = plan(made, tmp_path / "work")
    assert former.traces.digest == plan(recipe(place), place / "work").traces.digest, "the path does not matter"
    digests = (former.traces.digest, former.calibration.digest)
    write_problems(tmp_path / "problems.jsonl", 21)
    later = plan(made, tmp_path / "work")
    assert later.traces.digest != digests[0] and later.calibration.digest != digests[1]


@pytest.mark.parametrize(("number", "until"), list(enumerate(STEPS)))
def test_a_run_can_end_after_each_step(studied: Studied, place: Path, tmp_path: Path, number: int, until: str) -> None:
    made = recipe(place, vectors={"seeds": 1})
    assert DiscoveryRun(plan(made, tmp_path), studied.pair).run(until) is None
    kinds = {
        "traces": ["traces"],
        "activations": ["activations"],
        "sae": ["sae-1", "sae-2"],
        "taxonomy": [],
        "gates": ["gates"],
        "vectors": ["vectors-0"],
        "calibration": ["calibration"],
    }
    assert stages_in(tmp_path) == sorted(name for step in STEPS[: number + 1] for name in kinds[step])


def test_samples_replace_generated_traces(
    studied: Studied, found: DiscoveryResult, place: Path, tmp_path: Path
) -> None:
    """Calibration draws problems that no trace answers, even if fewer than traces.count are left."""
    texts = {trace.prompt for trace in studied.traces}
    given = found_by(recipe(place, traces={"count": 2000}), studied.pair, tmp_path, studied.traces)
    assert given.traces == studied.traces and "traces" not in stages_in(tmp_path)
    assert len(given.calibration.base.scores) == 3
    with pytest.raises(HybridError, match="8 different problems; traces and calibration need 9"):
        # The 12 traces answer the first 12 of the 20 problems.
        assert len(texts) == 12
        plan(recipe(place, calibration={"problems": 9}), tmp_path, studied.traces).check()


@pytest.mark.parametrize("holdout", [0.01, 0.5, 0.99])
def test_training_and_held_out_traces_are_never_empty(
    studied: Studied, place: Path, tmp_path: Path, holdout: float
) -> None:
    run = DiscoveryRun(plan(recipe(place, traces={"holdout": holdout}), tmp_path, studied.traces[:2]), studied.pair)
    assert run.held_out_traces.tolist() == [False, True]


def test_without_calibration_the_fit_with_the_smallest_loss_is_chosen(
    studied: Studied, found: DiscoveryResult, place: Path
) -> None:
    plain = found_by(recipe(place, calibration={"problems": 0}), studied.pair, place / "work")
    losses = [min(point.held_out for point in fitted.curves["vectors"]) for fitted in plain.fits]
    assert plain.calibration.fit == losses.index(min(losses)) and not plain.calibration.trials
    assert plain.calibration.setting.select == "mlp"


def test_an_undefined_gap_is_one_warning(
    studied: Studied, found: DiscoveryResult, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found_by(recipe(place), studied.pair, place / "work")
    assert caplog.text.count("thinking is not above base; the setting with the most right answers is chosen") == 1


def judged(place: Path, url: str, **changes: Any) -> DiscoveryRecipe:
    asked = {"kind": "endpoint", "model": "grader", "url": url, "sentences": 3, "examples": 2}
    return recipe(place, judge={**asked, **changes})


def test_a_judge_names_the_behaviors_and_is_asked_once(
    studied: Studied, found: DiscoveryResult, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_wait(monkeypatch)

    def grader(prompt: str) -> str:
        if '"title"' in prompt:
            return json.dumps({"title": "Doing something", "description": "It does."})
        return json.dumps({"category": 1, "fits": True, "confidence": 5, "overlap": 3})

    before = times_of(place / "work")
    with JudgeServer(grader=grader) as server:
        named = found_by(judged(place, server.url), studied.pair, place / "work")
        asked = len(server.asked)
        after = times_of(place / "work")
        assert {name: after[name] for name in before} == before
        made = sorted(after.keys() - before.keys())
        assert made[0] == "judge.jsonl" and {Path(name).name for name in made[1:]} == {DONE_FILE, GRADES_FILE}
        # These settings only change how replies are fetched, so that nothing is redone.
        found_by(judged(place, server.url, timeout=5, retries=1, concurrency=2), studied.pair, place / "work")
        assert len(server.asked) == asked and times_of(place / "work") == after
        found_by(judged(place, server.url, sentences=2), studied.pair, place / "work")
        more = times_of(place / "work").keys() - after.keys()
        assert {name.partition("-")[0] for name in more} == {"taxonomy"}
    assert named.grades is not None and named.grades.judge
    assert {behavior.title for behavior in named.behaviors} == {"Doing something"}
    assert len({behavior.key for behavior in named.behaviors}) == len(named.behaviors)
    assert torch.equal(named.fitted.vectors, found.fitted.vectors)


def test_an_unreachable_judge_leaves_finished_stages(studied: Studied, found: DiscoveryResult, place: Path) -> None:
    before = times_of(place / "work")
    lonely = judged(place, "http://127.0.0.1:9/v1", retries=0, timeout=1)
    with pytest.raises(HybridError) as error:
        found_by(lonely, studied.pair, place / "work")
    assert "\n" not in str(error.value) and "cannot be written" not in str(error.value)
    assert {name: time for name, time in times_of(place / "work").items() if name in before} == before


def test_models_that_agree_are_refused(studied: Studied, place: Path, tmp_path: Path) -> None:
    agreeing = ModelPair(studied.thinking, studied.thinking, RAW)
    with pytest.raises(HybridError, match="never disagree in the training traces"):
        found_by(recipe(place), agreeing, tmp_path, studied.traces)
    assert stages_in(tmp_path) == ["activations", "gates", "sae-1", "sae-2"], "finished stages stay"


@pytest.mark.parametrize(
    ("choose", "said"),
    [
        (lambda traces: [*traces, *(Trace(f"Q{i}:", "<think></think> 1") for i in range(4))], "the held-out traces "
         "have 0 sentences, but at least 2"),
        (lambda traces: [Trace(f"Q{i}:", "<think></think> 1") for i in range(4)], "the training traces "
         "have 0 sentences, but at least 3"),
        (lambda traces: [Trace(f"Q{i}:", "Only this.") for i in range(3)], "have 2 sentences, but at least 3"),
        (lambda traces: traces[:1], "too few traces .1."),
    ],
    ids=["held-out silent", "all silent", "one sentence each", "one trace"],
)  # fmt: skip
def test_too_few_traces_or_sentences_are_refused(
    studied: Studied, place: Path, tmp_path: Path, choose: Callable[[list[Trace]], list[Trace]], said: str
) -> None:
    with pytest.raises(HybridError, match=said) as error:
        found_by(recipe(place), studied.pair, tmp_path, choose(studied.traces))
    assert "\n" not in str(error.value)


def test_traces_without_thoughts_are_a_warning(
    studied: Studied, place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    silent = [Trace(f"Q{i}:", "<think></think> 1") for i in range(3)]
    with caplog.at_level(logging.WARNING):
        run = DiscoveryRun(plan(recipe(place), tmp_path, [*silent, *studied.traces]), studied.pair)
        assert run.run("gates") is None
        assert len(run.sentences) == len(run.trace_index)
    assert "3 of 15 traces have no thought, or none with a sentence in it" in caplog.text


def test_a_model_that_generates_nothing_is_refused(place: Path, tmp_path: Path) -> None:
    silent = tiny_model(0)
    with torch.no_grad():
        silent.lm_head.weight.zero_()
        silent.lm_head.weight[1] = 1.0
        silent.model.norm.weight.abs_()
        # The end token always has the largest logit.
        silent.lm_head.forward = lambda x: torch.nn.functional.one_hot(torch.ones(x.shape[:-1], dtype=int), 258).float()
    pair = ModelPair(LocalBackend(tiny_model(0), tiny_tokenizer()), LocalBackend(silent, tiny_tokenizer()), RAW)
    with pytest.raises(HybridError, match="found no response that is not empty"):
        found_by(recipe(place), pair, tmp_path)


def test_vocabularies_that_cannot_be_aligned_are_refused(studied: Studied) -> None:
    other = tiny_tokenizer()
    other.eos_token = None
    with pytest.raises(HybridError, match="no end token"):
        ModelPair(studied.base, LocalBackend(studied.thinking.model._module, other), RAW)
    with pytest.raises(HybridError, match="has no chat template"):
        ModelPair(studied.base, studied.thinking, RAW.model_copy(update={"thinking": "chat"}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"traces": {"count": 18}}, "20 different problems; traces and calibration need 21"),
        ({"problems": [{"data": "absent.jsonl"}]}, "absent.jsonl: cannot be read"),
    ],
)
def test_problems_are_read_before_the_work(place: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(HybridError, match=said):
        plan(recipe(place, **change), tmp_path / "work").check()
    assert not (tmp_path / "work").exists()


def test_problems_that_are_not_needed_are_not_read(place: Path, tmp_path: Path, studied: Studied) -> None:
    made = recipe(place, problems=[{"data": "absent.jsonl"}], calibration={"problems": 0})
    given = plan(made, tmp_path, studied.traces)
    given.check()
    assert given.problems == ([], []) and given.stages


def test_problems_of_finished_stages_are_not_read(studied: Studied, found: DiscoveryResult, place: Path) -> None:
    path = next((place / "work").glob(f"calibration-*/{SCORES_FILE}"))
    assert path.is_file() and next((place / "work").glob(f"traces-*/{TRACES_FILE}")).is_file()
    done = plan(recipe(place), place / "work")
    done.check()
    assert "problems" not in vars(done)
