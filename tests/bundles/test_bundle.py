import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.common.errors import HybridError

Make = Callable[..., Bundle]


@pytest.fixture
def saved(make_bundle: Make, tmp_path: Path) -> Path:
    make_bundle().save(tmp_path / "tiny" / "1.2.0")
    return tmp_path / "tiny" / "1.2.0"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and correct its digest, as a careless author would."""
    (folder / name).write_bytes(data)
    fields = yaml.safe_load((folder / "behavior.yaml").read_bytes())
    fields["files"][name] = hashlib.sha256(data).hexdigest()
    (folder / "behavior.yaml").write_text(yaml.safe_dump(fields))


def test_a_saved_bundle_comes_back(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle()
    saved = bundle.save(tmp_path / "v")
    loaded = Bundle.load(tmp_path / "v")
    assert loaded.tensors.keys() == bundle.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], bundle.tensors[name]) for name in bundle.tensors)
    assert loaded.manifest == saved.manifest
    assert loaded.identity == saved.identity == bundle.identity
    assert saved.path == loaded.path == tmp_path / "v"
    assert sorted(contents(tmp_path / "v")) == ["README.md", "behavior.yaml", "tensors.safetensors"]
    assert list(tmp_path.iterdir()) == [tmp_path / "v"]


def test_saving_fills_in_digests_and_norms(make_bundle: Make, saved: Path) -> None:
    manifest = Bundle.load(saved).manifest
    for name, digest in manifest.files.items():
        assert hashlib.sha256((saved / name).read_bytes()).hexdigest() == digest
    assert sorted(manifest.files) == ["README.md", "tensors.safetensors"]
    for behavior in manifest.behaviors:
        assert behavior.norm == pytest.approx(make_bundle().tensors[behavior.tensor].norm().item(), rel=1e-5)


def test_the_same_content_gives_the_same_bytes(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle()
    bundle.save(tmp_path / "a")
    shuffled = dict(reversed(bundle.tensors.items()))
    Bundle(bundle.manifest, shuffled).save(tmp_path / "b")
    Bundle.load(tmp_path / "a").save(tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def test_identity_follows_tensors_and_words(make_bundle: Make) -> None:
    bundle = make_bundle()
    other = Bundle(bundle.manifest, {**bundle.tensors, "bias": bundle.bias + 1})
    assert bundle.identity.startswith("tiny@1.2.0#")
    assert len(bundle.identity) == len("tiny@1.2.0#") + 12
    assert len({bundle.identity, other.identity, make_bundle(description="Other words.").identity}) == 3


def test_identity_is_the_digest_of_the_manifest_file(saved: Path) -> None:
    text = (saved / "behavior.yaml").read_bytes() + b"# a remark\n"
    (saved / "behavior.yaml").write_bytes(text)
    assert Bundle.load(saved).identity == f"tiny@1.2.0#{hashlib.sha256(text).hexdigest()[:12]}"


def test_views_of_shared_memory_are_saved(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle()
    pool = torch.randn(6, 3)
    tensors = {**bundle.tensors, "bias": pool[:, 0], "vector.check": pool[:, 0], "vector.restate": pool[:, 1]}
    Bundle(bundle.manifest, tensors).save(tmp_path / "v")
    assert torch.equal(Bundle.load(tmp_path / "v").bias, pool[:, 0])


def test_a_coefficient_network_is_optional_unless_select_needs_it(
    make_bundle: Make, fields: dict, tmp_path: Path
) -> None:
    make_bundle(network=3).save(tmp_path / "v")
    assert Bundle.load(tmp_path / "v").tensors["coefficient.heads.weight"].shape == (4, 3)
    mlp = {**fields["steering"], "select": "mlp", "windows": [0]}
    make_bundle(network=3, steering=mlp)
    with pytest.raises(HybridError, match=r"missing \['coefficient\.heads\.bias'"):
        make_bundle(steering=mlp)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sae.mean", None, r"missing \['sae\.mean'\], unexpected \[\]"),
        ("vector.extra", torch.zeros(6), r"missing \[\], unexpected \['vector\.extra'\]"),
        ("coefficient.trunk.bias", torch.zeros(3), "missing .*coefficient.heads.bias"),
        ("bias", torch.zeros(5), r"bias has shape \[5\]; .*require \[6\]"),
        ("sae.encoder.weight", torch.zeros(8, 4), r"shape \[8, 4\].*require \[4, 8\]"),
        ("bias", torch.zeros(6, dtype=torch.float16), "bias is torch.float16; it must be float32"),
        ("bias", torch.tensor([1, 2, 3, 4, 5, float("nan")]), "bias has 1 NaN or infinite of 6"),
        ("bias", torch.full((6,), float("inf")), "bias has 6 NaN or infinite of 6"),
    ],
)
def test_tensors_must_be_what_the_manifest_says(
    make_bundle: Make, name: str, value: torch.Tensor | None, message: str
) -> None:
    bundle = make_bundle()
    tensors = {**bundle.tensors, name: value}
    if value is None:
        del tensors[name]
    with pytest.raises(HybridError, match=message):
        Bundle(bundle.manifest, tensors)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(data=st.data())
def test_any_changed_byte_is_noticed(saved: Path, data: st.DataObject) -> None:
    path = saved / data.draw(st.sampled_from(["tensors.safetensors", "README.md"]))
    sound = path.read_bytes()
    at = data.draw(st.integers(0, len(sound) - 1))
    flipped = sound[at] ^ data.draw(st.integers(1, 255))
    path.write_bytes(sound[:at] + bytes([flipped]) + sound[at + 1 :])
    try:
        with pytest.raises(HybridError, match=r"sha256 is .*the manifest states .*copy"):
            Bundle.load(saved)
    finally:
        path.write_bytes(sound)


def test_a_missing_file_is_named(saved: Path) -> None:
    (saved / "README.md").unlink()
    with pytest.raises(HybridError, match=r"README\.md: no such file"):
        Bundle.load(saved)


def test_tensors_without_a_digest_are_not_read(saved: Path) -> None:
    fields = yaml.safe_load((saved / "behavior.yaml").read_bytes())
    del fields["files"]["tensors.safetensors"]
    (saved / "behavior.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(HybridError, match=r"the digest of tensors\.safetensors must be there"):
        Bundle.load(saved)


def test_a_pickle_is_not_loaded(saved: Path, tmp_path: Path) -> None:
    torch.save({"bias": torch.zeros(6)}, tmp_path / "pickle.pt")
    rewrite(saved, "tensors.safetensors", (tmp_path / "pickle.pt").read_bytes())
    with pytest.raises(HybridError, match="the header is larger than 1,048,576 bytes"):
        Bundle.load(saved)


def test_a_wrong_norm_is_refused(saved: Path) -> None:
    fields = yaml.safe_load((saved / "behavior.yaml").read_bytes())
    fields["behaviors"][1]["norm"] *= 2
    (saved / "behavior.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(HybridError, match=r"vector\.check has norm .*manifest states"):
        Bundle.load(saved)


def test_a_bundle_is_overwritten_only_when_asked(make_bundle: Make, saved: Path) -> None:
    before = contents(saved)
    other = make_bundle(description="Other words.")
    with pytest.raises(HybridError, match="a bundle is there already"):
        other.save(saved)
    assert contents(saved) == before
    other.save(saved, overwrite=True)
    assert Bundle.load(saved).manifest.description == "Other words."
    assert list(saved.parent.iterdir()) == [saved]


def test_other_folders_are_never_overwritten(make_bundle: Make, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for target in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(HybridError, match="exists and is not a bundle"):
            make_bundle().save(target, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_may_be_filled(make_bundle: Make, tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    make_bundle().save(tmp_path / "v")
    Bundle.load(tmp_path / "v")
    assert list(tmp_path.iterdir()) == [tmp_path / "v"]


def test_a_failed_save_leaves_nothing(make_bundle: Make, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(saved)
    write = Path.write_bytes

    def full_disk(path: Path, data: bytes) -> int:
        if path.name == "behavior.yaml":
            raise OSError("no space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        make_bundle(description="Other words.").save(saved, overwrite=True)
    assert contents(saved) == before
    assert list(saved.parent.iterdir()) == [saved]
