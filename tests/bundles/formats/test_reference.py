"""The research repository's files: synthetic ones, and the paper's own for one pair if available."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.formats import foreign, reference
from lm_eval_hybrid.bundles.formats.convert import ImportOptions
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.steering import SparseEncoder
from tests.bundles.formats import layout
from tests.bundles.formats.layout import put_sae, put_taxonomy, put_vector, put_vectors
from tests.shared_data import DATA


def options(**changes: Any) -> ImportOptions:
    fields = {"name": "pair", "version": "1.0.0", "base": "org/Base", "thinking": "org/Thinking"}
    return ImportOptions(**{**fields, **changes})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A pair of widths 6 and 8, with a bias, vectors of latents 0, 1, 3 and an SAE of four latents."""
    folder = tmp_path / "repository"
    put_vectors(folder)
    put_sae(folder)
    put_taxonomy(folder)
    return folder


def keys(bundle: Bundle) -> tuple[str, ...]:
    return tuple(behavior.key for behavior in bundle.manifest.behaviors)


def refused(root: Path, *patterns: str, **changes: Any) -> None:
    with pytest.raises(HybridError) as caught:
        reference.read(root, options(**changes))
    message = str(caught.value)
    assert "\n" not in message and message.count(";") >= 1
    for pattern in patterns:
        assert pattern in message


def straightforward(held: dict, residual: torch.Tensor) -> int:
    """The category of one residual [d], computed from the tensors of an SAE's file."""
    centred = residual - held.get("activation_mean", torch.zeros_like(residual))
    unit = centred / torch.sqrt((centred * centred).sum())
    return int(torch.argmax(held["encoder_weight"] @ (unit - held["b_dec"]) + held["encoder_bias"]))


def same_categories(bundle: Bundle, held: dict, scale: float = 3.0) -> None:
    residuals = scale * torch.randn(
        200, bundle.manifest.thinking.hidden_size, generator=torch.Generator().manual_seed(0)
    )
    categories = SparseEncoder.from_bundle(bundle).category(residuals).tolist()
    assert categories == [straightforward(held, residual) for residual in residuals]
    assert len(set(categories)) > 1


@pytest.mark.parametrize("core", ["core", "_core"])
def test_a_pair_becomes_a_bundle(root: Path, core: str, tmp_path: Path) -> None:
    held = put_sae(root, core=core)
    put_vector(root, "base", "idx3", n_training_examples=7)
    bundle = reference.read(root, options())
    manifest = bundle.manifest
    assert keys(bundle) == ("idx0", "idx1", "idx3")
    assert torch.equal(bundle.bias, put_vector(root, "base", "bias"))
    assert torch.equal(bundle.tensors["vector.idx3"], put_vector(root, "base", "idx3"))
    assert torch.equal(bundle.tensors["sae.decoder.weight"], held["decoder_weight"].T)
    assert torch.equal(bundle.tensors["sae.mean"], held["activation_mean"])
    assert [(b.key, b.title, b.description) for b in manifest.behaviors][2] == ("idx3", "First 3", "What First is.")
    assert (manifest.steering.layer, manifest.sae.layer, manifest.sae.latents, manifest.sae.k) == (2, 1, 4, 3)
    assert manifest.steering.coefficients == reference.COEFFICIENTS and 0 in manifest.steering.windows
    assert "2510.07364" in manifest.citation and manifest.training.seed == 42 and manifest.training.holdout == {}
    known = json.loads(manifest.training.recipe)
    assert known["vectors"]["max_iters"] == 50 and not {"vector_norm", "grad_clip"} & known["vectors"].keys()
    assert known["by_vector"] == {"n_training_examples": {"bias": 2048, "idx0": 2048, "idx1": 2048, "idx3": 7}}
    same_categories(bundle, held)
    assert Bundle.load(bundle.save(tmp_path / "saved").path).manifest.behaviors[0].norm > 0


def test_the_models_choose_among_several_pairs(root: Path) -> None:
    put_vectors(root, "other", "bias idx0")
    put_vectors(root, "base-2", "bias idx0 idx1 idx2 idx3")
    put_sae(root, "other-thinking", latents=1, topk=1)
    put_taxonomy(root, "other-thinking")
    bundle = reference.read(root, options(base="somebody/OTHER", thinking="models/Other-Thinking/"))
    assert keys(bundle) == ("idx0",)
    assert torch.equal(bundle.tensors["vector.idx0"], put_vector(root, "other", "idx0"))
    refused(root, "no vectors of missing", "those of base, base-2, other", base="org/missing")
    refused(root, "no SAE of missing", "sae_other-thinking_layer1_clusters1.pt", thinking="org/missing")


def test_a_base_with_vectors_for_this_thinking_model(root: Path) -> None:
    put_vectors(root, "base-on-thinking", "bias idx0")
    put_sae(root, latents=1, topk=1)
    bundle = reference.read(root, options())
    assert torch.equal(bundle.bias, put_vector(root, "base-on-thinking", "bias"))
    assert bundle.manifest.sae.latents == 1


@pytest.mark.parametrize(
    "part",
    ["", layout.VECTORS, layout.HYPERPARAMETERS, layout.SAES, layout.TAXONOMIES, "train-vectors", "train-saes/results"],
)
def test_any_folder_of_the_layout_works(root: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keys(reference.read(root / part, options())) == keys(reference.read(root, options()))
    monkeypatch.chdir(root / part)
    assert reference.read(Path("."), options()).manifest.behaviors[0].title == "First 0"


def test_files_may_lie_flat_or_in_a_part_of_the_layout(root: Path, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "vars").mkdir()
    for path in root.rglob("*.*"):
        if path.is_file():
            shutil.copy(path, tmp_path / "flat")
    shutil.copytree(root / layout.VECTORS, tmp_path / "vars/optimized_vectors")
    shutil.copytree(root / layout.SAES, tmp_path / "vars/saes")
    whole = reference.read(root, options())
    assert reference.read(tmp_path / "flat", options()).encoded() == whole.encoded()
    assert keys(reference.read(tmp_path / "vars", options(layer=2))) == keys(whole)
    refused(tmp_path / "vars", "without a stated layer", "--layer")
    refused(tmp_path / "nothing", "no such folder")


def test_older_names_and_older_files(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "older"
    put_vectors(folder, suffix="")
    bias = torch.load(folder / layout.VECTORS / "base_bias.pt")["bias"]
    torch.save(bias, folder / layout.VECTORS / "base_bias.pt")
    held = put_sae(folder, activation_mean=None, topk=None)
    category = {"title": "Planning", "description": "x", "examples": [" So. ", "So.", "Now.", "Then.", "Hm."]}
    older = {"categories": [["3", " Planning\nahead ", " Plans. "]], "detailed_results": {"3": category}}
    put_taxonomy(folder, detailed_results={"4": older})
    with caplog.at_level(logging.WARNING):
        bundle = reference.read(folder, options())
    assert any("no activation mean" in message for message in caplog.messages)
    assert not bundle.tensors["sae.mean"].any() and torch.equal(bundle.bias, bias) and bundle.manifest.sae.k == 3
    assert "not stored" in bundle.manifest.training.recipe
    titles = {behavior.key: (behavior.title, behavior.description) for behavior in bundle.manifest.behaviors}
    assert titles == {"idx0": ("Category 0", ""), "idx1": ("Category 1", ""), "idx3": ("Planning ahead", "Plans.")}
    assert bundle.manifest.behaviors[2].examples == ("So.", "Now.", "Then.")
    same_categories(bundle, held)


def test_newer_vectors_are_not_mixed_with_older_ones(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_vectors(root, suffix="", categories="bias idx0 idx2")
    assert keys(reference.read(root, options())) == ("idx0", "idx1", "idx3")
    assert any("not imported: base_bias.pt, base_idx0.pt, base_idx2.pt" in message for message in caplog.messages)


def test_no_taxonomy_gives_plain_titles(root: Path) -> None:
    (root / layout.TAXONOMIES / "sae_topk_results_thinking_layer1.json").unlink()
    behaviors = reference.read(root, options()).manifest.behaviors
    assert [(b.title, b.description, b.examples) for b in behaviors][1] == ("Category 1", "", ())


def test_latents_choose_behaviors(root: Path) -> None:
    assert keys(reference.read(root, options(latents=(3, 0)))) == ("idx0", "idx3")
    refused(root, "no latent 2, 7; there are 0, 1, 3", latents=(2, 7))
    refused(root, "no latent is named", latents=())


def test_the_sae_follows_from_the_vectors_or_is_chosen(root: Path) -> None:
    put_sae(root, latents=5)
    put_sae(root, latents=2, topk=2)
    assert reference.read(root, options()).manifest.sae.latents == 4
    put_sae(root, layer=5)
    both = "sae_thinking_layer1_clusters4.pt, sae_thinking_layer5_clusters4.pt"
    refused(root, f"several SAEs of thinking for 4 latents: {both}", "--sae-layer")
    assert reference.read(root, options(sae_layer=5)).manifest.sae.layer == 5
    refused(root, "with 4 latents or more at layer 6", sae_layer=6)
    for layer in (1, 5):
        (root / layout.SAES / f"sae_thinking_layer{layer}_clusters4.pt").unlink()
    assert reference.read(root, options()).manifest.sae.latents == 5
    put_sae(root, latents=6)
    refused(root, "layer1_clusters5.pt, sae_thinking_layer1_clusters6.pt", "leave one of them there")


def test_the_layer_follows_from_the_vectors_or_is_chosen(root: Path) -> None:
    put_vector(root, "base", "idx1", layer=3)
    refused(root, "for layers 2, 3", "--layer")
    assert keys(reference.read(root, options(layer=2))) == ("idx0", "idx3")
    refused(root, "only idx1 for layer 3", layer=3)
    refused(root, "for layers 2, 3, not 4", layer=4)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"steering_type": "adaptive_linear"}, "steering_type is adaptive_linear"),
        ({"lora_rank": 2}, "lora_rank is 2"),
        ({"adaptive_hidden": 128}, "adaptive_hidden is 128"),
    ],
)
def test_adaptive_and_low_rank_steering_is_refused(root: Path, change: dict, found: str) -> None:
    put_vector(root, "base", "idx1", **change)
    refused(root, "base_idx1_linear.pt: ", found, "needs a linear steering vector")


@pytest.mark.parametrize("kind", ["_adaptive_linear", "_resid_lora", "_lora", "_adaptive"])
def test_variants_are_skipped_if_there_is_a_vector_and_refused_otherwise(
    root: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    put_vector(root, "base", "idx1", suffix=kind)
    assert "idx1" in keys(reference.read(root, options()))
    assert any(f"not imported: base_idx1{kind}.pt" in message for message in caplog.messages)
    put_vector(root, "base", "idx2", suffix=kind)
    refused(root, "idx2 is only an adaptive or low-rank variant", f"base_idx2{kind}.pt")


def test_a_missing_bias_is_refused(root: Path) -> None:
    (root / layout.VECTORS / "base_bias_linear.pt").unlink()
    refused(root, "idx0, idx1, idx3 without the bias vector base_bias_linear.pt")


def test_a_bias_alone_is_refused(tmp_path: Path) -> None:
    put_vectors(tmp_path, categories="bias")
    put_sae(tmp_path)
    refused(tmp_path, "only bias for layer 2", "the bias vector and that of a behavior are needed")


def test_norms_must_be_those_stated(root: Path) -> None:
    norm = float(put_vector(root, "base", "idx1").norm())
    put_vector(root, "base", "idx1", vector_norm=norm * 1.0005)
    assert reference.read(root, options()).manifest.behaviors
    put_vector(root, "base", "idx1", vector_norm=norm * 1.01)
    refused(root, "base_idx1_linear.pt: the vector has norm", "states")


@pytest.mark.parametrize(
    ("held", "found"),
    [
        ({"idx1": torch.ones(1, 6)}, "the vector has shape [1, 6]"),
        ({"idx1": torch.tensor(1.0)}, "the vector has shape []"),
        ({"idx1": torch.ones(7)}, "has width 7; the bias has 6"),
        ({"idx1": {"w": torch.ones(6)}}, "of type dict; it must be a tensor"),
        ({"idx2": torch.ones(6)}, "holds idx2, not the vector idx1"),
        ({}, "holds nothing"),
        ([torch.ones(6)], "of type list; it must be a tensor"),
        ({"idx1": torch.full((6,), float("nan"))}, "has 6 NaN or infinite"),
    ],
)
def test_other_values_than_vectors_are_refused(root: Path, held: object, found: str) -> None:
    (root / layout.HYPERPARAMETERS / "steering_vector_hyperparams_base_idx1_linear.json").unlink()
    torch.save(held, root / layout.VECTORS / "base_idx1_linear.pt")
    refused(root, "base_idx1_linear.pt", found)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"encoder_weight": torch.ones(3, 8)}, "encoder_weight has shape [3, 8]; it must have [4, width]"),
        ({"encoder_weight": torch.ones(4, 0)}, "has shape [4, 0]"),
        ({"encoder_bias": torch.ones(4, 1)}, "encoder_bias has shape [4, 1]; it must have [4]"),
        ({"decoder_weight": torch.ones(4, 7)}, "decoder_weight has shape [4, 7]; it must have [4, 8] or [8, 4]"),
        ({"b_dec": torch.ones(7)}, "b_dec has shape [7]; it must have [8]"),
        ({"activation_mean": torch.ones(7)}, "activation_mean has shape [7]; it must have [8]"),
        ({"b_dec": None}, "holds no b_dec"),
        ({"topk": 5}, "topk is 5; it must be 1 to 4"),
        ({"topk": 0}, "topk is 0; it must be 1 to 4"),
        ({"b_dec": torch.full((8,), float("inf"))}, "b_dec has 8 NaN or infinite"),
    ],
)
def test_malformed_saes_are_refused(root: Path, change: dict, found: str) -> None:
    put_sae(root, **change)
    refused(root, "sae_thinking_layer1_clusters4.pt: ", found)


def test_a_decoder_like_a_linear_layer(root: Path) -> None:
    held = put_sae(root, decoder_weight=torch.randn(8, 4))
    assert torch.equal(reference.read(root, options()).tensors["sae.decoder.weight"], held["decoder_weight"])


class Runs:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@pytest.mark.parametrize(
    "name", [f"{layout.VECTORS}/base_idx0_linear.pt", f"{layout.SAES}/sae_thinking_layer1_clusters4.pt"]
)
def test_nothing_in_a_file_is_executed(root: Path, name: str) -> None:
    torch.save({"idx0": Runs(f"touch {root}/mark"), "b_dec": Runs(f"touch {root}/mark")}, root / name)
    refused(root, "not readable as tensors and plain data", "system")
    assert not (root / "mark").exists()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "of type list; it must be a JSON object"),
        ("{}", "category: Field required"),
        ('{"category": "idx2", "hyperparameters": {"layer": 2}}', "category is 'idx2'; it must be idx1"),
        ('{"category": "idx1", "hyperparameters": {"layer": -1}}', "hyperparameters.layer"),
        ('{"category": "idx1", "hyperparameters": {"vector_norm": NaN}}', "hyperparameters.vector_norm"),
    ],
)
def test_unsound_hyperparameters_are_refused(root: Path, text: str, found: str) -> None:
    (root / layout.HYPERPARAMETERS / "steering_vector_hyperparams_base_idx1_linear.json").write_text(text)
    refused(root, "steering_vector_hyperparams_base_idx1_linear.json", found)


def test_models_of_other_widths_are_refused(root: Path, fake_model: Callable[[int], Path]) -> None:
    base = fake_model(10)
    for path in [*(root / layout.VECTORS).iterdir(), *(root / layout.HYPERPARAMETERS).iterdir()]:
        path.rename(path.with_name(path.name.replace("base_", f"{base.name}_")))
    refused(root, "has width 10; the base model must have the vectors' width, 6", base=str(base))


@pytest.fixture
def fake_model(tmp_path: Path) -> Callable[[int], Path]:
    """A folder with a configuration of that width and a tokenizer, without weights."""
    from transformers import LlamaConfig

    from lm_eval_hybrid.common import paths

    def make(width: int) -> Path:
        folder = tmp_path / f"model-{width}"
        config = LlamaConfig(hidden_size=width, intermediate_size=8, num_attention_heads=1, num_hidden_layers=4)
        config.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(paths.embedded_dir() / "base" / name, folder)
        return folder

    return make


REAL = DATA / "reference"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the paper's own files in {REAL}")
PAIR = {"base": "Qwen/Qwen2.5-Math-1.5B", "thinking": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"}


@real
def test_the_papers_own_files(tmp_path: Path) -> None:
    start = time.perf_counter()
    bundle = reference.read(REAL, options(name="qwen2.5-math-1.5b--r1-distill", **PAIR))
    assert time.perf_counter() - start < 60
    manifest = bundle.manifest
    assert keys(bundle) == tuple(f"idx{latent}" for latent in range(15))
    assert (manifest.steering.layer, manifest.sae.layer, manifest.sae.latents, manifest.sae.k) == (10, 4, 15, 3)
    assert (manifest.base.hidden_size, manifest.thinking.hidden_size) == (1536, 1536)
    titles = [behavior.title for behavior in manifest.behaviors]
    assert len(set(titles)) == 15 and titles[3] == "Reconsideration Signals" and titles[11] == "Hypothesis Generation"
    assert all(len(behavior.description) > 100 for behavior in manifest.behaviors)
    assert manifest.training.seed == 42
    assert float(bundle.bias.norm()) == pytest.approx(51.569366, rel=1e-4)
    saved = bundle.save(tmp_path / "bundle")
    assert saved.manifest.behaviors[3].norm == pytest.approx(96.278, rel=1e-4)


@real
def test_the_papers_own_sae_gives_the_same_categories() -> None:
    path = REAL / layout.SAES / "sae_deepseek-r1-distill-qwen-1.5b_layer4_clusters15.pt"
    held = foreign.load_torch(path, 1 << 29)
    same_categories(reference.read(REAL / layout.SAES, options(**PAIR)), held)
