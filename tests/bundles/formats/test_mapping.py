import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.formats import mapping
from lm_eval_hybrid.bundles.formats.convert import ImportOptions
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.steering import SparseEncoder

OPTIONS = {"name": "mapped", "version": "1.0.0", "base": "org/base", "thinking": "org/thinking"}
Change = Callable[[dict], None]


def generated(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """Directions of a base of width 6 as rows and as columns, an SAE of 4 latents on width 8 as SAELens has it."""
    return {
        "directions": generated(5, 6),
        "columns": generated(6, 3).double(),
        "shift": generated(6).bfloat16(),
        "W_enc": generated(8, 4),
        "b_enc": generated(4).half(),
        "W_dec": generated(4, 8),
        "b_dec": generated(8),
        "mean": generated(8),
    }


@pytest.fixture
def fields() -> dict:
    """A mapping of all tensors."""
    return {
        "tensors": {
            "bias": {"file": "vectors.safetensors", "tensor": "shift"},
            "vector.check": {"file": "vectors.safetensors", "tensor": "directions", "row": 3},
            "vector.plan": {"file": "vectors.safetensors", "tensor": "columns", "column": 1},
            "sae.encoder.weight": {"file": "sae.safetensors", "tensor": "W_enc", "transpose": True},
            "sae.encoder.bias": {"file": "sae.safetensors", "tensor": "b_enc"},
            "sae.decoder.weight": {"file": "sae.safetensors", "tensor": "W_dec", "transpose": True},
            "sae.decoder.bias": {"file": "sae.safetensors", "tensor": "b_dec"},
            "sae.mean": {"file": "sae.safetensors", "tensor": "mean"},
        },
        "behaviors": [
            {"key": "check", "latent": 3, "title": "Checking", "description": "Again.", "examples": ["Is it?"]},
            {"key": "plan", "latent": 1, "title": "Planning"},
        ],
        "steering": {"layer": 2, "coefficients": [0.5, 1.0], "windows": [1, 0], "gate_rate": 0.1},
        "sae": {"layer": 1, "latents": 4, "k": 2},
    }


@pytest.fixture
def folder(tmp_path: Path, tensors: dict, fields: dict) -> Path:
    sae = ("W_enc", "b_enc", "W_dec", "b_dec", "mean")
    save_file({name: tensors[name] for name in sae}, tmp_path / "sae.safetensors")
    save_file({name: tensors[name] for name in tensors if name not in sae}, tmp_path / "vectors.safetensors")
    put(tmp_path, fields)
    return tmp_path


def put(folder: Path, fields: object) -> None:
    (folder / "mapping.yaml").write_text(yaml.safe_dump(fields))


def read(folder: Path, **changes: Any) -> Bundle:
    return mapping.read(folder, ImportOptions(**{**OPTIONS, **changes}))


def refused(folder: Path, *patterns: str, **changes: Any) -> None:
    with pytest.raises(HybridError) as caught:
        read(folder, **changes)
    message = str(caught.value)
    assert "\n" not in message
    for pattern in patterns:
        assert pattern in message


def test_tensors_come_from_where_the_mapping_says(folder: Path, tensors: dict, fields: dict, tmp_path: Path) -> None:
    bundle = read(folder)
    expected = {
        "bias": tensors["shift"].float(),
        "vector.check": tensors["directions"][3],
        "vector.plan": tensors["columns"][:, 1].float(),
        "sae.encoder.weight": tensors["W_enc"].T,
        "sae.encoder.bias": tensors["b_enc"].float(),
        "sae.decoder.weight": tensors["W_dec"].T,
        "sae.decoder.bias": tensors["b_dec"],
        "sae.mean": tensors["mean"],
    }
    assert bundle.tensors.keys() == expected.keys()
    assert all(torch.equal(bundle.tensors[name], expected[name]) for name in expected)
    manifest = bundle.manifest
    assert [behavior.key for behavior in manifest.behaviors] == ["check", "plan"]
    assert manifest.behaviors[0].examples == ("Is it?",) and manifest.behaviors[1].description == ""
    assert manifest.steering.model_dump(include=set(fields["steering"])) == {
        **fields["steering"],
        "coefficients": (0.5, 1.0),
        "windows": (1, 0),
    }
    assert (manifest.sae.layer, manifest.sae.latents, manifest.sae.k) == (1, 4, 2)
    assert "vectors.safetensors (sha256 " in manifest.training.recipe
    bundle.save(tmp_path / "saved")
    assert Bundle.load(tmp_path / "saved").manifest.behaviors[0].norm > 0


def test_the_categories_are_those_of_the_tensors(folder: Path, tensors: dict) -> None:
    residuals = generated(100, 8)
    categories = SparseEncoder.from_bundle(read(folder)).category(residuals)
    unit = torch.nn.functional.normalize(residuals - tensors["mean"])
    codes = (unit - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"].float()
    assert torch.equal(categories, codes.argmax(1)) and len(categories.unique()) > 1


def test_optional_tensors(folder: Path, tensors: dict, fields: dict, caplog: pytest.LogCaptureFixture) -> None:
    left_out = ("bias", "sae.encoder.bias", "sae.decoder.weight", "sae.decoder.bias", "sae.mean")
    for name in left_out:
        del fields["tensors"][name]
    put(folder, fields)
    with caplog.at_level(logging.WARNING):
        bundle = read(folder)
    assert torch.equal(bundle.tensors["sae.decoder.weight"], tensors["W_enc"])
    assert not any(bundle.tensors[name].any() for name in left_out if name != "sae.decoder.weight")
    assert any("the encoder's transpose" in message for message in caplog.messages)
    assert any("bias, sae.encoder.bias, sae.decoder.bias, sae.mean" in message for message in caplog.messages)


def test_latents_choose_behaviors_and_layers_must_agree(folder: Path) -> None:
    assert [behavior.key for behavior in read(folder, latents=(1,), layer=2, sae_layer=1).manifest.behaviors] == [
        "plan"
    ]
    refused(folder, "no latent 0; there are 3, 1", latents=(1, 0))
    refused(folder, "layer is 2, not 5", layer=5)
    refused(folder, "sae_layer is 1, not 0", sae_layer=0)


def test_a_coefficient_network_is_imported(folder: Path, fields: dict) -> None:
    shapes = {"trunk.weight": (3, 6), "trunk.bias": (3,), "heads.weight": (4, 3), "heads.bias": (4,)}
    save_file({name: generated(*shape) for name, shape in shapes.items()}, folder / "network.safetensors")
    for name in shapes:
        fields["tensors"][f"coefficient.{name}"] = {"file": "network.safetensors", "tensor": name}
    fields["steering"] |= {"select": "mlp", "windows": [1]}
    put(folder, fields)
    assert read(folder).tensors["coefficient.heads.weight"].shape == (4, 3)


CHANGES: list[tuple[Change, str]] = [
    (lambda f: f.update(more=1), "more: Extra inputs"),
    (lambda f: f.pop("sae"), "sae: Field required"),
    (lambda f: f["tensors"].pop("vector.plan"), "missing vector.plan, unknown none"),
    (lambda f: f["tensors"].pop("sae.encoder.weight"), "missing sae.encoder.weight"),
    (lambda f: f["tensors"].update({"vector.other": dict(f["tensors"]["bias"])}), "missing none, unknown vector.other"),
    (lambda f: f["tensors"]["bias"].update(scale=2), "tensors.bias.scale: Extra inputs"),
    (lambda f: f["tensors"]["vector.check"].update(column=1), "row and column exclude each other"),
    (lambda f: f["tensors"]["sae.encoder.weight"].update(row=0), "row and transpose exclude each other"),
    (lambda f: f["tensors"]["vector.check"].update(row=5), "directions for vector.check has 5 rows, from 0"),
    (lambda f: f["tensors"]["vector.plan"].update(column=3), "it must have a column 3"),
    (lambda f: f["tensors"]["vector.check"].update(row=-1), "tensors.vector.check.row"),
    (lambda f: f["tensors"]["bias"].update(row=0), "shift for bias has shape [6]; only a matrix has rows"),
    (lambda f: f["tensors"]["vector.check"].pop("row"), "it must be a vector"),
    (lambda f: f["tensors"]["bias"].update(tensor="Shift"), "Shift for bias is missing; the file has "),
    (lambda f: f["tensors"]["bias"].update(file="none.safetensors"), "none.safetensors: no such file"),
    (lambda f: f["tensors"]["bias"].update(file="../x.safetensors"), "tensors.bias.file"),
    (lambda f: f["tensors"]["bias"].update(file="/etc/passwd"), "tensors.bias.file"),
    (lambda f: f["tensors"]["bias"].update(file="mapping.yaml"), "not a safetensors file"),
    (lambda f: f["tensors"]["sae.encoder.weight"].pop("transpose"), "has 8 rows of 4"),
    (lambda f: f["sae"].update(latents=5), "it must have one for each of 5 latents"),
    (lambda f: f["tensors"]["sae.mean"].update(tensor="b_enc"), "sae.mean has shape [4]"),
    (lambda f: f["tensors"]["bias"].update(tensor="directions", column=0), "bias has shape [5]"),
    (lambda f: f["behaviors"][0].update(latent=9), "a behavior has latent 9"),
    (lambda f: f["behaviors"][0].update(key="A b"), "behaviors.0.key"),
    (lambda f: f["behaviors"][0].update(tensor="x"), "behaviors.0.tensor: Extra inputs"),
    (lambda f: f["behaviors"].clear(), "behaviors:"),
    (lambda f: f["steering"].update(coefficients=[float("inf")]), "steering.coefficients.0"),
    (lambda f: f["steering"].update(select="fixed"), "select 'fixed' needs exactly one"),
]


@pytest.mark.parametrize(("change", "found"), CHANGES, ids=[found for _, found in CHANGES])
def test_unsound_mappings_are_refused_in_one_line(folder: Path, fields: dict, change: Change, found: str) -> None:
    change(fields)
    put(folder, fields)
    refused(folder, found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: 1\na: 2\n", "duplicate key 'a'"),
        ("a: &x 1\nb: *x\n", "an alias of a value in line 1"),
        ("!!python/object/apply:os.system ['true']\n", "the tag"),
        ("- 1\n", "of type list; it must be a mapping"),
    ],
)
def test_only_plain_yaml_is_read(folder: Path, text: str, found: str) -> None:
    (folder / "mapping.yaml").write_text(text)
    refused(folder, str(folder / "mapping.yaml"), found)


def test_no_mapping_and_no_folder(tmp_path: Path) -> None:
    refused(tmp_path, "mapping.yaml: no such file")
    refused(tmp_path / "none", "mapping.yaml: no such file")


def test_numbers_must_be_finite_floats(folder: Path) -> None:
    for shift, found in (
        (torch.full((6,), 1e300, dtype=torch.float64), "shift for bias has 6 NaN or infinite of 6"),
        (torch.tensor([0.0, float("nan"), 0, 0, 0, 0]), "shift for bias has 1 NaN or infinite of 6"),
        (torch.arange(6), "floating-point numbers"),
        (torch.ones(0), "it must be a vector"),
    ):
        held = {"shift": shift, "directions": generated(5, 6), "columns": generated(6, 3)}
        save_file(held, folder / "vectors.safetensors")
        refused(folder, found)


def test_files_are_bounded_whole_and_regular(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (folder / "sae.safetensors").read_bytes()
    (folder / "sae.safetensors").write_bytes(whole[:-4])
    refused(folder, "sae.safetensors: not a safetensors file")
    (folder / "sae.safetensors").unlink()
    (folder / "sae.safetensors").mkdir()
    refused(folder, "not a regular file")
    monkeypatch.setattr(mapping, "MAX_BYTES", 100)
    refused(folder, "larger than the limit of 100 bytes")
