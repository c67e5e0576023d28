"""SAEs of SAELens: read with the same strongest latents, and written so that they can be read again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lm_eval_hybrid.bundles import contents
from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.formats import saelens
from lm_eval_hybrid.bundles.formats.convert import ExportOptions, ImportOptions
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.steering import SparseEncoder
from tests.tiny_system import WIDTH, TinySystem, write_system

LATENTS = 24


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> TinySystem:
    return write_system(tmp_path_factory.mktemp("system"))


@pytest.fixture
def options(system: TinySystem) -> ImportOptions:
    return ImportOptions("imported", "1.0.0", str(system.base), str(system.thinking), layer=2)


def weights(latents: int = LATENTS, **others: Tensor) -> dict[str, Tensor]:
    """Random tensors with decoder rows of different lengths, and biases as large as the residuals."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "W_enc": normal(WIDTH, latents),
        "b_enc": 3 * normal(latents),
        "W_dec": normal(latents, WIDTH) * (1 + torch.arange(latents)[:, None]),
        "b_dec": 3 * normal(WIDTH),
        **others,
    }


def config(**changes: Any) -> dict[str, Any]:
    """cfg.json as SAELens 6 writes it."""
    fields = {
        "architecture": "standard",
        "d_in": WIDTH,
        "d_sae": LATENTS,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "hook_name": "blocks.1.hook_resid_post",
            "model_name": "a-model",
            "hook_layer": None,
            "sae_lens_version": "6.12.1",
        },
    }
    return {name: value for name, value in {**fields, **changes}.items() if value != "left out"}


def folder(path: Path, fields: Any, tensors: dict[str, Tensor] | None = None) -> Path:
    path = path / "sae"
    path.mkdir(exist_ok=True)
    (path / "cfg.json").write_text(json.dumps(fields))
    save_file(weights() if tensors is None else tensors, path / "sae_weights.safetensors")
    return path


def residuals() -> Tensor:
    return 5 * torch.randn(2000, WIDTH, generator=torch.Generator().manual_seed(1)) + 1


def strongest(fields: dict[str, Any], tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """The latent of the largest activation, as SAELens computes activations; in double precision."""
    x, given = x.double(), {name: tensor.double() for name, tensor in tensors.items()}
    if fields["normalize_activations"] == "constant_norm_rescale":
        x = x * (fields["d_in"] ** 0.5 / x.norm(dim=-1, keepdim=True))
    x = x - given["b_dec"] * fields["apply_b_dec_to_input"]
    before = x @ given["W_enc"] + given["b_enc"]
    if fields.get("rescale_acts_by_decoder_norm"):
        before = before * given["W_dec"].norm(dim=-1)
    return before.argmax(-1)


def test_encoder_decoder_and_rows(options: ImportOptions, tmp_path: Path) -> None:
    given = weights()
    bundle = saelens.read(folder(tmp_path, config(architecture="topk", k=7)), replace(options, latents=(5, 2)))
    tensors, manifest = bundle.tensors, bundle.manifest
    assert torch.equal(tensors["sae.encoder.weight"], given["W_enc"].T)
    assert torch.equal(tensors["sae.encoder.bias"], given["b_enc"])
    assert torch.equal(tensors["sae.decoder.weight"], given["W_dec"].T)
    assert torch.equal(tensors["sae.decoder.bias"], given["b_dec"])
    assert not tensors["sae.mean"].any()
    assert not tensors["bias"].any()
    assert torch.equal(tensors["vector.latent-5"], given["W_dec"][5])
    assert [(b.key, b.latent, b.title) for b in manifest.behaviors] == [
        ("latent-5", 5, "Latent 5"),
        ("latent-2", 2, "Latent 2"),
    ]
    assert (manifest.sae.layer, manifest.sae.latents, manifest.sae.k) == (1, LATENTS, 7)
    assert (manifest.sae.normalization, manifest.steering.layer) == ("none", 2)
    assert bundle.save(tmp_path / "bundle").identity == bundle.identity


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("normalization", ["none", "constant_norm_rescale"])
@pytest.mark.parametrize("changes", [{}, {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True}])
def test_categories_are_saelens_strongest_latents(
    options: ImportOptions, tmp_path: Path, subtracts: bool, normalization: str, changes: dict[str, Any]
) -> None:
    fields = config(apply_b_dec_to_input=subtracts, normalize_activations=normalization, **changes)
    bundle = saelens.read(folder(tmp_path, fields), options)
    x = residuals()
    expected = strongest(fields, weights(), x)
    assert torch.equal(SparseEncoder.from_bundle(bundle).category(x), expected)
    assert len(expected.unique()) > 5
    other = strongest({**fields, "apply_b_dec_to_input": not subtracts}, weights(), x)
    assert not torch.equal(other, expected)  # the biases matter


def test_scaled_saes_decode_the_same(options: ImportOptions, tmp_path: Path) -> None:
    given, x = weights(), residuals()
    bundle = saelens.read(folder(tmp_path, config(normalize_activations="constant_norm_rescale")), options)
    length = x.norm(dim=-1, keepdim=True)
    coefficient = WIDTH**0.5 / length
    theirs = (
        ((x * coefficient - given["b_dec"]) @ given["W_enc"] + given["b_enc"]).relu() @ given["W_dec"] + given["b_dec"]
    ) / coefficient
    tensors = bundle.tensors
    codes = SparseEncoder.from_bundle(bundle).codes(x).relu()
    ours = length * (codes @ tensors["sae.decoder.weight"].T + tensors["sae.decoder.bias"])
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("hook", "layer"),
    [("blocks.2.hook_resid_post", 2), ("blocks.2.hook_resid_pre", 1), ("model.layers.2", 2), ("layers.0", 0)],
)
def test_hooks_name_the_layer(options: ImportOptions, tmp_path: Path, hook: str, layer: int) -> None:
    assert saelens.read(folder(tmp_path, config(metadata={"hook_name": hook})), options).manifest.sae.layer == layer


@pytest.mark.parametrize(
    "changes",
    [
        {"metadata": "left out", "hook_name": "blocks.1.hook_resid_post", "hook_layer": 1, "model_name": "a-model"},
        {"metadata": "left out", "hook_point": "blocks.1.hook_resid_post", "hook_point_layer": 1},
        {"metadata": "left out", "meta": {"hook_name": "blocks.1.hook_resid_post"}, "normalize_activations": None},
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}, "normalize_activations": False},
        {"architecture": "left out", "activation_fn": "relu"},
    ],
)
def test_older_forms_are_read(options: ImportOptions, tmp_path: Path, changes: dict[str, Any]) -> None:
    tensors = weights(scaling_factor=torch.ones(LATENTS))
    bundle = saelens.read(folder(tmp_path, config(**changes), tensors), options)
    assert bundle.manifest.sae.layer == 1
    assert bundle.manifest.sae.k == (4 if "activation_fn_kwargs" in changes else 1)


def test_one_threshold_for_all_leaves_the_order(options: ImportOptions, tmp_path: Path) -> None:
    tensors = weights(threshold=torch.full((LATENTS,), 0.3))
    bundle = saelens.read(folder(tmp_path, config(architecture="jumprelu"), tensors), options)
    assert torch.equal(
        SparseEncoder.from_bundle(bundle).category(residuals()), strongest(config(), tensors, residuals())
    )


@pytest.mark.parametrize(
    ("changes", "others", "said"),
    [
        (
            {"architecture": "gated"},
            {},
            "architecture is 'gated'; it must be one of standard, topk, batchtopk, jumprelu",
        ),
        ({"architecture": ["topk"]}, {}, "architecture is of type list"),
        ({"architecture": "jumprelu"}, {"threshold": torch.arange(LATENTS) / 10}, "of threshold differ"),
        (
            {"architecture": "jumprelu"},
            {"threshold": torch.full((LATENTS,), torch.nan)},
            "of threshold differ",
        ),
        ({}, {"scaling_factor": torch.full((LATENTS,), 2.0)}, "has a tensor scaling_factor"),
        ({}, {"r_mag": torch.ones(LATENTS)}, "has a tensor r_mag"),
        ({"activation_fn": "tanh-relu"}, {}, "activation_fn is 'tanh-relu'; it must be one of relu, topk"),
        ({"normalize_activations": "layer_norm"}, {}, "is 'layer_norm'; .*: others are not linear"),
        ({"normalize_activations": "expected_average_only_in"}, {}, "fold the average norm into the weights"),
        ({"normalize_activations": True}, {}, "normalize_activations is True; it must be one of"),
        ({"reshape_activations": "hook_z"}, {}, "reshape_activations is 'hook_z'; it must be one of none"),
        ({"metadata": {"hook_name": "blocks.1.hook_mlp_out"}}, {}, "reads blocks.1.hook_mlp_out; .*use another SAE"),
        ({"metadata": {"hook_name": "blocks.0.hook_resid_pre"}}, {}, "reads blocks.0.hook_resid_pre"),
        ({"metadata": {}}, {}, "names no hook; .*give --sae-layer"),
        ({"metadata": {"hook_name": "blocks.9.hook_resid_post"}}, {}, "must be below 4"),
        ({"k": 0}, {}, "k is 0; it must be a whole number above 0"),
        ({"k": LATENTS + 1}, {}, "it must be at most latents"),
        ({"d_in": "left out"}, {}, "d_in is of type NoneType; it must be a whole number above 0"),
        ({"d_in": True}, {}, "d_in is True; it must be a whole number"),
        ({"d_sae": 1 << 60}, {}, "it must be a whole number"),
        ({"d_sae": LATENTS - 1}, {}, "W_enc is torch.float32"),
        ({"d_in": WIDTH - 1}, {}, "has 32; .*mapping.yaml"),
        ({}, {"b_enc": torch.full((LATENTS,), torch.nan)}, "finite"),
        ({}, {"b_dec": torch.zeros(WIDTH, dtype=torch.int32)}, "b_dec is torch.int32"),
        ({}, {"W_dec": torch.zeros(WIDTH, LATENTS)}, "W_dec is torch.float32"),
    ],
)
def test_others_are_refused_in_one_line(
    options: ImportOptions, tmp_path: Path, changes: dict[str, Any], others: dict[str, Tensor], said: str
) -> None:
    with pytest.raises(HybridError, match=said) as error:
        saelens.read(folder(tmp_path, config(**changes), weights(**others)), options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"layer": None}, "give --layer"),
        ({"latents": (LATENTS,)}, f"no latent {LATENTS}; there are 0, 1, 2"),
        ({"latents": (-1,)}, "no latent -1"),
        ({"latents": ()}, "no latent is named"),
        ({"sae_layer": 2}, "sae_layer is 2; blocks.1.hook_resid_post reads layer 1"),
        ({"layer": 4}, "must be below 4"),
    ],
)
def test_unsound_choices_are_refused(options: ImportOptions, tmp_path: Path, choice: dict[str, Any], said: str) -> None:
    with pytest.raises(HybridError, match=said):
        saelens.read(folder(tmp_path, config()), replace(options, **choice))


def test_without_a_hook_the_layer_option_counts(options: ImportOptions, tmp_path: Path) -> None:
    bundle = saelens.read(folder(tmp_path, config(metadata={})), replace(options, sae_layer=3))
    assert bundle.manifest.sae.layer == 3


def test_many_latents_must_be_named(options: ImportOptions, tmp_path: Path) -> None:
    path = folder(tmp_path, config(d_sae=100), weights(100))
    with pytest.raises(HybridError, match="100 latents; if there are more than 64"):
        saelens.read(path, options)
    bundle = saelens.read(path, replace(options, latents=(99, 3)))
    assert (bundle.manifest.sae.latents, len(bundle.manifest.behaviors)) == (100, 2)
    assert "without a name" in bundle.manifest.description


def test_too_large_saes_are_refused_before_they_are_read(options: ImportOptions, tmp_path: Path) -> None:
    path = folder(tmp_path, config(d_sae=1 << 22))
    (path / "sae_weights.safetensors").unlink()
    size = 4 * WIDTH * (2 * (1 << 22) + 1)
    assert size > contents.MAX_BYTES
    with pytest.raises(HybridError, match=rf"all 4,194,304 latents take {size:,} bytes.*mapping.yaml"):
        saelens.read(path, replace(options, latents=(1,)))


@pytest.mark.parametrize("text", ["", "[", "[]", "[" * 10000, '{"d_in": 1' + "0" * 5000 + "}", "\ud800"])
def test_broken_configs_are_refused_in_one_line(options: ImportOptions, tmp_path: Path, text: str) -> None:
    path = folder(tmp_path, config())
    (path / "cfg.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(HybridError) as error:
        saelens.read(path, options)
    assert "\n" not in str(error.value)


def test_broken_weights_are_refused_in_one_line(options: ImportOptions, tmp_path: Path) -> None:
    path = folder(tmp_path, config())
    file = path / "sae_weights.safetensors"
    whole = file.read_bytes()
    for case in (b"", whole[:7], whole[:200], whole[:-1], whole + b"x", b"\xff" * 100):
        file.write_bytes(case)
        with pytest.raises(HybridError, match="not a safetensors file") as error:
            saelens.read(path, options)
        assert "\n" not in str(error.value)
    for name in (file, path / "cfg.json"):
        name.unlink()
        with pytest.raises(HybridError, match=f"{name.name}: no such file"):
            saelens.read(path, options)


def test_round_trip(options: ImportOptions, tmp_path: Path) -> None:
    bundle = saelens.read(folder(tmp_path, config(architecture="topk", k=7)), replace(options, latents=(1, 4)))
    lost = saelens.write(bundle, ExportOptions(), tmp_path / "written")
    again = saelens.read(tmp_path / "written", replace(options, latents=(1, 4)))
    assert again.tensors.keys() == bundle.tensors.keys()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in bundle.tensors.items())
    assert again.manifest.sae == bundle.manifest.sae
    assert any("2 behaviors" in line for line in lost)
    assert not any("unit length" in line for line in lost)
    written = load_file(tmp_path / "written" / "sae_weights.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in weights().items())
    fields = json.loads((tmp_path / "written" / "cfg.json").read_text())
    assert fields["architecture"] == "topk"
    assert fields["metadata"]["hook_name"] == "blocks.1.hook_resid_post"
    # Without it SAELens takes the configuration for one of before version 6, and looks for k elsewhere.
    assert fields["metadata"]["sae_lens_version"] == "6.0.0"


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_unit_length_is_written_as_sqrt_d(
    system: TinySystem, options: ImportOptions, tmp_path: Path, mean: float
) -> None:
    given = Bundle.load(system.bundle)
    shifted = {"sae.mean": torch.full((WIDTH,), mean), "sae.decoder.bias": 0.2 * torch.randn(WIDTH)}
    bundle = Bundle(given.manifest, {**given.tensors, **shifted})
    lost = saelens.write(bundle, ExportOptions(), tmp_path / "written")
    assert any("the mean that is subtracted" in line for line in lost) == bool(mean)
    assert any("constant_norm_rescale" in line for line in lost)
    fields = json.loads((tmp_path / "written" / "cfg.json").read_text())
    written = load_file(tmp_path / "written" / "sae_weights.safetensors")
    centred = {**bundle.tensors, "sae.mean": torch.zeros(WIDTH)}
    category = SparseEncoder.from_bundle(Bundle(bundle.manifest, centred)).category(residuals())
    assert torch.equal(strongest(fields, written, residuals()), category)
    again = saelens.read(tmp_path / "written", options)
    assert again.manifest.sae == bundle.manifest.sae
    for name in ("sae.encoder.weight", "sae.encoder.bias", "sae.decoder.weight", "sae.decoder.bias"):
        assert torch.allclose(again.tensors[name], bundle.tensors[name], rtol=1e-6)


def test_nothing_is_overwritten(make_bundle: Any, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    with pytest.raises(HybridError, match="exists already"):
        saelens.write(make_bundle(), ExportOptions(), tmp_path / "there")
    assert (tmp_path / "there" / "mine").exists()
