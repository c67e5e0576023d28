"""Files of the harness's steered model: ours steer it as they steer us, and theirs steer us as they steer it."""

import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.formats import lm_eval_steered
from lm_eval_hybrid.bundles.formats.convert import ExportOptions, ImportOptions
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.harness.hybrid_lm import HybridLM
from tests.oracle.architectures import FAMILIES, tiny_config
from tests.tiny_system import WIDTH, TinySystem, tiny_tokenizer, write_system

PROMPTS = ("Question: 3 + 4?\nAnswer:", "Problem: a longer one, with 5 * 6?\nAnswer:", "1 + 1?", "Hello there")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> TinySystem:
    return write_system(tmp_path_factory.mktemp("system"))


@pytest.fixture
def options(system: TinySystem) -> ImportOptions:
    return ImportOptions("imported", "1.0.0", str(system.base), str(system.thinking))


def steering(system: TinySystem, seed: int, latent: int) -> Bundle:
    """The system's bundle with other vectors, and an SAE whose category is always one latent."""
    bundle = Bundle.load(system.bundle)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator)
        if name == "bias" or name.startswith("vector.")
        else torch.zeros_like(tensor)
        for name, tensor in bundle.tensors.items()
    }
    tensors["sae.encoder.bias"][latent] = 1
    return Bundle(bundle.manifest, tensors)


def texts(model: Any) -> list[str]:
    settings = {"until": ["@@@@"], "max_gen_toks": 24}
    requests = [
        Instance("generate_until", {}, (prompt, settings), i, ("task", i, 1)) for i, prompt in enumerate(PROMPTS)
    ]
    return model.generate_until(requests, disable_tqdm=True)


def in_harness(system: TinySystem, path: Path) -> list[str]:
    kind = get_model("steered")
    return texts(kind(pretrained=str(system.base), steer_path=str(path), device="cpu", batch_size=1, dtype="float32"))


def with_us(bundle: Path, coefficient: float, **arguments: Any) -> list[str]:
    always = {
        "gate": "always",
        "select": "fixed",
        "coefficients": [coefficient],
        "windows": 0,
        "thinking_prompt": "raw",
    }
    return texts(HybridLM(behaviors=str(bundle), **{**always, **arguments}))


@pytest.mark.parametrize(("seed", "coefficient"), [(0, 1.0), (1, 0.4), (2, -1.5)])
def test_the_harness_steers_by_our_file_as_we_do(
    system: TinySystem, tmp_path: Path, seed: int, coefficient: float
) -> None:
    bundle = steering(system, seed, latent=seed).save(tmp_path / "bundle")
    key = bundle.manifest.behaviors[seed].key
    lost = lm_eval_steered.write(bundle, ExportOptions(key, coefficient), tmp_path / "mine.pt")
    theirs, ours = in_harness(system, tmp_path / "mine.pt"), with_us(tmp_path / "bundle", coefficient)
    tokenizer = tiny_tokenizer()
    assert [tokenizer.encode(text) for text in ours] == [tokenizer.encode(text) for text in theirs]
    plain = with_us(tmp_path / "bundle", coefficient, gate="never")
    assert all(text != before for text, before in zip(ours, plain, strict=True))
    assert all(record.behavior == key for answer in ours for record in answer.generation.records)  # type: ignore[attr-defined]
    assert any("gate disagreement" in line for line in lost)
    assert any("3 behaviors" in line for line in lost)
    assert any("0.5, 1; select guardrail" in line for line in lost)


def test_we_steer_by_their_file_as_the_harness_does(system: TinySystem, options: ImportOptions, tmp_path: Path) -> None:
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(4))
    entry = {"steering_vector": vector, "steering_coefficient": 2.5, "action": "add", "bias": None, "head_index": None}
    torch.save({"layers.1": entry}, tmp_path / "theirs.pt")
    imported = lm_eval_steered.read(tmp_path / "theirs.pt", options).save(tmp_path / "bundle")
    policy = imported.manifest.steering
    assert (policy.layer, policy.coefficients, policy.windows) == (1, (2.5,), (0,))
    assert (policy.gate, policy.select) == ("always", "fixed")
    answers = texts(HybridLM(behaviors=str(tmp_path / "bundle"), thinking_prompt="raw"))
    assert answers == in_harness(system, tmp_path / "theirs.pt")


def test_round_trip(system: TinySystem, options: ImportOptions, tmp_path: Path) -> None:
    bundle = Bundle.load(system.bundle)
    lm_eval_steered.write(bundle, ExportOptions("plan", 0.75), tmp_path / "a.pt")
    once = lm_eval_steered.read(tmp_path / "a.pt", options)
    assert torch.equal(once.bias + once.tensors["vector.direction"], bundle.bias + bundle.tensors["vector.plan"])
    assert once.manifest.steering.layer == bundle.manifest.steering.layer
    lost = lm_eval_steered.write(once, ExportOptions(), tmp_path / "b.pt")
    twice = lm_eval_steered.read(tmp_path / "b.pt", options)
    assert all(torch.equal(twice.tensors[name], tensor) for name, tensor in once.tensors.items())
    assert len(lost) == 1  # all that it says of steering is in the file
    assert (tmp_path / "b.pt").read_bytes() == (tmp_path / "a.pt").read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_hookpoints_are_modules_of_the_base(family: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(family, 32, 2))
    for name in (type(model).__name__, model.config.model_type):
        module = f"{lm_eval_steered.layers_module(name)}.1"
        assert module in dict(model.base_model.named_modules())


def test_unknown_architectures_get_the_usual_module_and_a_note(make_bundle: Any, fields: dict, tmp_path: Path) -> None:
    for architecture in (None, "StrangeForCausalLM", "Gemma3ForConditionalGeneration"):
        bundle = make_bundle(base={**fields["base"], "architecture": architecture})
        path = tmp_path / f"{architecture}.pt"
        lost = lm_eval_steered.write(bundle, ExportOptions("check"), path)
        assert any("layers.2 is written" in line for line in lost)
        assert list(torch.load(path, weights_only=True)) == ["layers.2"]


def test_the_largest_coefficient_is_the_default(make_bundle: Any, tmp_path: Path) -> None:
    lm_eval_steered.write(make_bundle(), ExportOptions("check"), tmp_path / "a.pt")
    entry = torch.load(tmp_path / "a.pt", weights_only=True)["layers.2"]
    assert entry["steering_coefficient"] == 1.0


@pytest.mark.parametrize(
    ("options", "name", "said"),
    [
        (ExportOptions(), "a.pt", "no behavior is named; .*name one of restate, check"),
        (ExportOptions("other"), "a.pt", "no behavior 'other'"),
        (ExportOptions("check", float("nan")), "a.pt", "must be a finite number"),
        (ExportOptions("check"), "a.bin", "ends in '.bin'"),
        (ExportOptions("check"), "there.pt", "exists already"),
    ],
)
def test_impossible_exports_are_refused(
    make_bundle: Any, tmp_path: Path, options: ExportOptions, name: str, said: str
) -> None:
    (tmp_path / "there.pt").touch()
    with pytest.raises(HybridError, match=said):
        lm_eval_steered.write(make_bundle(), options, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["there.pt"]


def entry(**changes: Any) -> dict[str, Any]:
    return {"steering_vector": torch.ones(WIDTH), "steering_coefficient": 1.0, "action": "add", **changes}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"layers.1": entry(action="clamp")}, "action is 'clamp'"),
        ({"layers.1": entry(head_index=0)}, "head_index is of type int"),
        ({"layers.1": entry(bias=torch.zeros(WIDTH))}, "bias is of type Tensor"),
        ({"layers.1.self_attn.o_proj": entry()}, "no layer's output"),
        ({"layers.1": entry(), "layers.2": entry()}, "holds layers.1, layers.2"),
        ({"layers.9": entry()}, "must be below 4"),
        ({"layers.1": entry(steering_vector=torch.ones(WIDTH + 1))}, "has width 32; .* width, 33"),
        ({"layers.1": entry(steering_vector=torch.ones(1, WIDTH))}, "must be one vector"),
        ({"layers.1": entry(steering_vector=torch.tensor(1.0))}, "must be one vector"),
        ({"layers.1": entry(steering_vector=torch.ones(1).expand(1 << 40))}, "must be one vector"),
        ({"layers.1": entry(steering_vector=torch.ones(WIDTH, dtype=torch.int64))}, "floating-point"),
        ({"layers.1": entry(steering_vector=torch.full((WIDTH,), torch.nan))}, "finite"),
        ({"layers.1": entry(steering_vector=torch.full((WIDTH,), 1e300, dtype=torch.float64))}, "finite"),
        ({"layers.1": entry(steering_vector=[1.0] * WIDTH)}, "of type list; it must be a tensor"),
        ({"layers.1": {"action": "add"}}, "of type NoneType; it must be a tensor"),
        ({"layers.1": entry(steering_coefficient=float("inf"))}, "it must be a finite number"),
        ({"layers.1": entry(steering_coefficient="1.0")}, "steering_coefficient is '1.0'"),
        ({"layers.1": entry(steering_coefficient=10**400)}, "of type int; it must be a finite number"),
        ({"layers.1": entry(steering_coefficient=10**9000)}, "tensors and plain data"),
        ({"layers.1": entry(action="a\nb" * 1000)}, "a bundle can only add"),
        ({"line\nbreak" * 1000: entry()}, "no layer's output"),
        ({"line\nbreak": entry(), "b": entry()}, "holds 'line"),
        ({"layers.1": torch.ones(WIDTH)}, "a dictionary a hookpoint"),
        ({1: entry()}, "a dictionary a hookpoint"),
        ({}, "a dictionary a hookpoint"),
        ([entry()], "another value of type list"),
        (torch.ones(WIDTH), "another value of type Tensor"),
    ],
)
def test_other_files_are_refused_in_one_line(options: ImportOptions, tmp_path: Path, content: Any, said: str) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(HybridError, match=said) as error:
        lm_eval_steered.read(tmp_path / "file.pt", options)
    assert "\n" not in str(error.value)


def test_a_layer_chooses_and_numbers_may_be_tensors(options: ImportOptions, tmp_path: Path) -> None:
    content = {
        "layers.1": entry(action="clamp"),
        "model.layers.2": entry(steering_vector=torch.arange(WIDTH).bfloat16(), steering_coefficient=torch.tensor(3.0)),
    }
    torch.save(content, tmp_path / "file.pth")
    bundle = lm_eval_steered.read(tmp_path / "file.pth", replace(options, layer=2))
    assert torch.equal(bundle.tensors["vector.direction"], torch.arange(WIDTH).float())
    assert bundle.manifest.steering.coefficients == (3.0,)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_executed(options: ImportOptions, tmp_path: Path) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "file.pt"
    trap = {"layers.1": entry(steering_vector=Trap(sprung))}
    torch.save(trap, path)
    torch.load(path, weights_only=False)
    assert sprung.exists()  # it is a trap
    sprung.unlink()
    with pytest.raises(HybridError):
        lm_eval_steered.read(path, options)
    path.write_bytes(pickle.dumps(trap))
    with pytest.raises(HybridError):
        lm_eval_steered.read(path, options)
    assert not sprung.exists()


def test_broken_archives_are_refused_in_one_line(options: ImportOptions, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save({"layers.1": entry()}, path)
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(whole), (60,), generator=generator).tolist()
    for case in [whole[:place] for place in places] + [flipped(whole, place) for place in places]:
        path.write_bytes(case)
        try:
            lm_eval_steered.read(path, options)  # what is flipped may be a value, or padding
        except HybridError as error:
            assert "\n" not in str(error)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def test_packed_archives_are_refused(options: ImportOptions, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save({"layers.1": entry(steering_vector=torch.zeros(1 << 20))}, path)
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(HybridError, match="larger than the file"):
        lm_eval_steered.read(tmp_path / "packed.pt", options)


HEADER = "loader,action,sparse_model,hookpoint,feature_index,steering_coefficient,head_index,sae_id,description\n"


@pytest.fixture
def coders(tmp_path: Path) -> torch.Tensor:
    """Sparse coders below the folder: sparsify's at layers.1, SAELens's alone; the same W_dec [4, d] in both."""
    weights = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(5))
    for folder, name in ((tmp_path / "sparse" / "layers.1", "sae"), (tmp_path / "lens", "sae_weights")):
        folder.mkdir(parents=True)
        save_file({"W_dec": weights, "encoder.weight": weights.clone()}, folder / f"{name}.safetensors")
        (folder / "cfg.json").write_text('{"metadata": {"hook_name": "blocks.3.hook_resid_pre"}}')
    return weights


def table(path: Path, *rows: str) -> Path:
    path = path / "table.csv"
    path.write_text(HEADER + "".join(row + "\n" for row in rows))
    return path


def test_a_row_is_a_decoder_row(options: ImportOptions, coders: torch.Tensor, tmp_path: Path) -> None:
    path = table(tmp_path, 'sparsify,add,sparse,layers.1,2,10.0,,,"dogs, mostly",')
    bundle = lm_eval_steered.read(path, options)
    assert torch.equal(bundle.tensors["vector.direction"], coders[2])
    assert bundle.manifest.steering.coefficients == (10.0,)
    assert bundle.manifest.steering.layer == 1
    assert bundle.manifest.behaviors[0].title == "dogs, mostly"


def test_saelens_rows_may_leave_the_hook_to_the_coder(
    options: ImportOptions, coders: torch.Tensor, tmp_path: Path
) -> None:
    bundle = lm_eval_steered.read(table(tmp_path, f"sae_lens,add,{tmp_path / 'lens'},,1,-2,,,"), options)
    assert torch.equal(bundle.tensors["vector.direction"], coders[1])
    assert bundle.manifest.steering.layer == 2


def test_feature_and_layer_choose_among_rows(options: ImportOptions, coders: torch.Tensor, tmp_path: Path) -> None:
    row = "sparsify,add,sparse,layers.{},{},1,,,"
    path = table(tmp_path, row.format(1, 0), row.format(1, 3), row.format(2, 3))
    for choice in ({}, {"latents": (3,)}, {"latents": (7,)}):
        with pytest.raises(HybridError, match=r"feature 0 at layers.1, feature 3 at layers.1, feature 3 at layers.2"):
            lm_eval_steered.read(path, replace(options, **choice))
    bundle = lm_eval_steered.read(path, replace(options, latents=(3,), layer=1))
    assert torch.equal(bundle.tensors["vector.direction"], coders[3])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("sparsify,add,EleutherAI/sae-pythia-70m-32k,layers.1,3,1,,,", "download"),
        (
            "sae_lens,add,gemma-scope-2b-pt-res-canonical,layers.1,3,1,,layer_20/width_16k/canonical,",
            "download",
        ),
        ("sparsify,add,,layers.1,3,1,,,", "download"),
        ("sparsify,clamp,sparse,layers.1,3,1,,,", "has action 'clamp'"),
        ("sparsify,add,sparse,layers.1,3,1,4,,", "has head_index '4'"),
        ("sparsify,add,sparse/layers.1,layers.1.attention,3,1,,,", "it must be a layer's output"),
        ("sparsify,add,sparse,layers.1,4,1,,,", "it must have a row 4"),
        ("sparsify,add,sparse,layers.1,-1,1,,,", "feature_index is '-1'; it must be a whole number"),
        ("sparsify,add,sparse,layers.1,3,nan,,,", "it must be a finite number"),
        ("pickle,add,sparse,layers.1,3,1,,,", "loader is 'pickle'; it must be sparsify or sae_lens"),
    ],
)
def test_other_rows_are_refused_in_one_line(
    options: ImportOptions, coders: torch.Tensor, tmp_path: Path, row: str, said: str
) -> None:
    with pytest.raises(HybridError, match=said) as error:
        lm_eval_steered.read(table(tmp_path, row), options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff\xfe", "comma-separated"),
        (b"", "no column sparse_model"),
        (HEADER.encode(), "no rows"),
        (b"a,b\n1,2\n", "no column sparse_model"),
        (HEADER.encode() + b'"open', "comma-separated"),
        (b"x" * (2 << 20), "larger than the limit"),
    ],
)
def test_other_tables_are_refused_in_one_line(options: ImportOptions, tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "table.csv").write_bytes(data)
    with pytest.raises(HybridError, match=said) as error:
        lm_eval_steered.read(tmp_path / "table.csv", options)
    assert "\n" not in str(error.value)


def test_broken_coders_are_refused_in_one_line(options: ImportOptions, coders: torch.Tensor, tmp_path: Path) -> None:
    weights = tmp_path / "sparse" / "layers.1" / "sae.safetensors"
    whole, path = weights.read_bytes(), table(tmp_path, "sparsify,add,sparse,layers.1,3,1,,,")
    for case in (b"", whole[:100], whole[:-1], b"\xff" * 64):
        weights.write_bytes(case)
        with pytest.raises(HybridError, match="a safetensors file with W_dec is needed"):
            lm_eval_steered.read(path, options)
    save_file({"W_dec": torch.full((4, WIDTH), torch.inf)}, weights)
    with pytest.raises(HybridError, match="finite"):
        lm_eval_steered.read(path, options)
