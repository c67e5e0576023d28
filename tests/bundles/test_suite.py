from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from lm_eval_hybrid.bundles.bundle import Bundle
from lm_eval_hybrid.bundles.suite import Choice, compose
from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.decoding.steering import Steering

SAE_OFFSETS = ("sae.encoder.bias", "sae.decoder.bias")
Make = Callable[..., Bundle]


@pytest.fixture
def frame(make_bundle: Make) -> Bundle:
    """Latents 0 (restate) and 2 (check) of 4."""
    return make_bundle()


def another(frame: Bundle, same_sae: bool = True, **changes: object) -> Bundle:
    """A bundle `lab` of one behavior, `doubt`, on latent 1: of the frame's SAE, or of one of its own."""
    doubt = {
        "key": "doubt",
        "latent": 1,
        "title": "Doubting",
        "description": "",
        "examples": (),
        "tensor": "vector.doubt",
    }
    fields = {**frame.manifest.model_dump(), "name": "lab", "behaviors": [doubt], "results": (), **changes}
    generator = torch.Generator().manual_seed(8)
    tensors = {name: tensor for name, tensor in frame.tensors.items() if not name.startswith("vector.")}
    for name in ("bias", *(() if same_sae else [name for name in tensors if name.startswith("sae.")])):
        tensors[name] = 3 * torch.randn(tensors[name].shape, generator=generator)
    tensors["vector.doubt"] = torch.randn(6, generator=generator)
    return Bundle(type(frame.manifest).model_validate(fields), tensors)


def test_a_single_bundle_steers_as_its_manifest_says(frame: Bundle) -> None:
    steering = Steering.from_suite(compose([frame]))
    assert steering.keys == ("restate", "latent-1", "check", "latent-3")
    assert torch.equal(steering.vectors[0], frame.tensors["vector.restate"])
    assert torch.equal(steering.vectors[2], frame.tensors["vector.check"])
    assert not steering.vectors[[1, 3]].any()
    assert compose([frame]).identity == frame.identity


def test_two_halves_of_a_bundle_make_the_whole(frame: Bundle) -> None:
    halves = []
    for index, name in enumerate(("first", "second")):
        behavior = frame.manifest.behaviors[index]
        manifest = frame.manifest.model_copy(update={"name": name, "behaviors": (behavior,)})
        others = {b.tensor for b in frame.manifest.behaviors} - {behavior.tensor}
        halves.append(Bundle(manifest, {n: t for n, t in frame.tensors.items() if n not in others}))
    whole, joined = Steering.from_suite(compose([frame])), Steering.from_suite(compose(halves))
    assert joined.keys == whole.keys
    assert torch.equal(joined.vectors, whole.vectors)
    residual = torch.randn(50, 8)
    assert torch.equal(joined.encoder.category(residual), whole.encoder.category(residual))


def test_an_added_behavior_of_the_same_sae_takes_its_latent_with_its_own_bias(frame: Bundle) -> None:
    lab = another(frame)
    steering = Steering.from_suite(compose([frame, lab]))
    assert steering.keys == ("restate", "doubt", "check", "latent-3")
    torch.testing.assert_close(steering.bias + steering.vectors[1], lab.bias + lab.tensors["vector.doubt"])
    assert torch.equal(steering.bias, frame.bias)


def test_another_sae_adds_the_latents_of_its_behaviors(frame: Bundle) -> None:
    lab = another(frame, same_sae=False)
    # Small offsets, so that each latent is the strongest somewhere.
    frame, lab = (
        replace(one, tensors={**one.tensors, **{name: 0.1 * one.tensors[name] for name in SAE_OFFSETS}})
        for one in (frame, lab)
    )
    steering = Steering.from_suite(compose([frame, lab]))
    assert steering.keys == ("restate", "latent-1", "check", "latent-3", "doubt")
    residual = 5 * torch.randn(200, 8)
    answers = [codes(frame, residual), codes(lab, residual)[:, [1]]]
    expected = np.concatenate(answers, axis=1).argmax(1)
    assert steering.encoder.category(residual).tolist() == expected.tolist()
    assert 4 in expected and (expected < 4).any()
    torch.testing.assert_close(steering.bias + steering.vectors[4], lab.bias + lab.tensors["vector.doubt"])


def codes(bundle: Bundle, residual: torch.Tensor) -> np.ndarray:
    """The SAE's pre-activations: W_e ((h - mean) / |h - mean| - b_dec) + b_e."""
    part = {name.removeprefix("sae."): tensor.double().numpy() for name, tensor in bundle.tensors.items()}
    centred = residual.double().numpy() - part["mean"]
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return (unit - part["decoder.bias"]) @ part["encoder.weight"].T + part["encoder.bias"]


def test_an_sae_may_read_the_residual_as_it_is(frame: Bundle) -> None:
    manifest = frame.manifest.model_copy(
        update={"sae": frame.manifest.sae.model_copy(update={"normalization": "none"})}
    )
    plain = replace(frame, manifest=manifest)
    residual = 5 * torch.randn(100, 8)
    tensors = {name: tensor.double().numpy() for name, tensor in frame.tensors.items()}
    read = residual.double().numpy() - tensors["sae.decoder.bias"]
    expected = (read @ tensors["sae.encoder.weight"].T + tensors["sae.encoder.bias"]).argmax(1)
    found = Steering.from_suite(compose([plain])).encoder.category(residual)
    assert found.tolist() == expected.tolist()
    assert found.tolist() != Steering.from_suite(compose([frame])).encoder.category(residual).tolist()


def test_behaviors_left_out_count_as_unnamed(frame: Bundle) -> None:
    for choice in (Choice(only=("check",)), Choice(without=("restate",)), Choice(only=("tiny/check",))):
        suite = compose([frame], choice)
        steering = Steering.from_suite(suite)
        assert steering.keys == ("latent-0", "latent-1", "check", "latent-3")
        assert not steering.vectors[0].any()
        assert suite.identity == f"{frame.identity}[check]"
        assert suite.tensors is None


def test_scales_do_not_change_the_bias(frame: Bundle) -> None:
    suite = compose([frame], Choice(scales={"check": -2.0}))
    steering = Steering.from_suite(suite)
    assert torch.equal(steering.vectors[2], -2 * frame.tensors["vector.check"])
    assert torch.equal(steering.vectors[0], frame.tensors["vector.restate"])
    assert torch.equal(steering.bias, frame.bias)
    assert suite.identity == f"{frame.identity}[restate,check*-2]"


def test_an_added_bundle_without_used_behaviors_changes_nothing(frame: Bundle) -> None:
    steering = Steering.from_suite(compose([frame, another(frame, same_sae=False)], Choice(without=("doubt",))))
    assert steering.keys == ("restate", "latent-1", "check", "latent-3")
    assert torch.equal(steering.vectors, Steering.from_suite(compose([frame])).vectors)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("steering", {"layer": 1}, "steering.layer is 2 in tiny and 1 in lab; .*use bundles made for one pair"),
        (
            "steering",
            {"coefficients": (2.0,)},
            r"steering.coefficients is \(0.5, 1.0\) .* set coefficients= for both",
        ),
        ("steering", {"gate": "always"}, "steering.gate is disagreement in tiny and always in lab; .*set gate="),
        ("sae", {"layer": 0}, "sae.layer is 1"),
        ("prompt", {"prefix": "x"}, "prompt is"),
        ("base", {"layers": 9}, "base.layers is 4 in tiny and 9 in lab"),
        ("thinking", {"tokenizer_sha256": "e" * 64}, "thinking.tokenizer_sha256 is"),
    ],
)
def test_conflicts_are_named(frame: Bundle, part: str, changes: dict, message: str) -> None:
    other = another(frame, **{part: {**frame.manifest.model_dump()[part], **changes}})
    with pytest.raises(HybridError, match=message):
        compose([frame, other])


def test_overridden_fields_may_differ(frame: Bundle) -> None:
    steering = {**frame.manifest.model_dump()["steering"], "coefficients": (2.0,)}
    assert len(compose([frame, another(frame, steering=steering)], overridden=["coefficients"]).parts) == 2


def test_an_unknown_field_is_no_conflict(frame: Bundle) -> None:
    base = {**frame.manifest.model_dump()["base"], "layers": None, "tokenizer_sha256": None}
    assert len(compose([frame, another(frame, base=base)]).parts) == 2


def test_keys_and_latents_must_be_unique(frame: Bundle) -> None:
    check = {**frame.manifest.model_dump()["behaviors"][1], "latent": 3}
    named = replace_behavior(another(frame), check)
    with pytest.raises(HybridError, match=r"tiny and lab both have key check; .*as in without=lab/check"):
        compose([frame, named])
    assert compose([frame, named], Choice(without=("tiny/check",))).parts[1].behaviors[0].key == "check"
    with pytest.raises(HybridError, match=r"several bundles have a behavior check; .*write tiny/check or lab/check"):
        compose([frame, named], Choice(without=("check",)))
    taken = replace_behavior(another(frame), {**check, "key": "doubt", "latent": 2, "tensor": "vector.doubt"})
    with pytest.raises(HybridError, match=r"tiny and lab both have latent 2 of one SAE"):
        compose([frame, taken])


def replace_behavior(lab: Bundle, behavior: dict) -> Bundle:
    fields = {**lab.manifest.model_dump(), "behaviors": [behavior]}
    tensors = {**lab.tensors, behavior["tensor"]: lab.tensors["vector.doubt"]}
    if behavior["tensor"] != "vector.doubt":
        del tensors["vector.doubt"]
    return Bundle(type(lab.manifest).model_validate(fields), tensors)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(only=("chek",)), "no behavior chek; the bundles have restate, check; did you mean check"),
        (Choice(without=("restate", "check")), "all behaviors are left out"),
        (Choice(without=("check",), scales={"check": 2.0}), "check of tiny has a scale but is left out"),
        (Choice(only=()), "all behaviors are left out"),
    ],
)
def test_invalid_choices_are_refused(frame: Bundle, choice: Choice, message: str) -> None:
    with pytest.raises(HybridError, match=message):
        compose([frame], choice)


def test_contradictory_choices_are_refused() -> None:
    with pytest.raises(HybridError, match="they exclude each other"):
        Choice(only=("a",), without=("b",))
    with pytest.raises(HybridError, match="the scale of a is inf"):
        Choice(scales={"a": float("inf")})


def test_a_bundle_given_twice_is_refused(frame: Bundle) -> None:
    with pytest.raises(HybridError, match="tiny is given twice"):
        compose([frame, frame])
