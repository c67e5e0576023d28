import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.discovery import findings
from lm_eval_hybrid.discovery.findings import Findings, map_points, shorten, transitions


@pytest.fixture
def fields() -> dict[str, Any]:
    behavior = {"title": "A title", "description": "", "share": 0.5, "examples": ["One.", "Two."], "norm": 3.0}
    return {
        "bundle": "tiny@1.0.0",
        "base": "org/base",
        "thinking": "org/thinking",
        "data": "3 traces",
        "code_version": "0.1.0",
        "seed": 0,
        "behaviors": [{"key": "first", **behavior}, {"key": "second", "effect": -0.1, "gates": 7, **behavior}],
        "points": [{"x": -1.5, "y": 0.25, "behavior": 1, "text": "Two \u2028 lines \U0001f600"}],
        "transitions": [[1, 2], [0, 4]],
        "sweep": [{"layer": 3, "method": "sae", "size": 2, "score": 0.5, "told": None}],
        "chosen": {"layer": 3, "size": 2},
        "curves": {"bias": [{"step": 0, "held_out": 2.0}, {"step": 1, "loss": 1.5, "held_out": 1.75, "norm": 0.1}]},
        "cosines": [[1, 0.1, 0.2], [0.1, 1, -0.3], [0.2, -0.3, 1]],
        "grades": {"judge": "a judge", "consistency": 0.75, "unanswered": 2},
        "calibration": [
            {"select": "fixed", "coefficients": [1.0], "windows": [0], "steered": 0.1, "changed": 0.05, "accuracy": 0.5}
        ],
        "holdout": {"hit_rate": 0.83},
    }


def test_findings_are_read_as_they_were_written(fields: dict, tmp_path: Path) -> None:
    found = Findings.model_validate(fields)
    findings.write(found, tmp_path / "findings.json")
    assert findings.read(tmp_path / "findings.json") == found
    assert (tmp_path / "findings.json").read_bytes() == findings.dump(found)
    assert json.loads(findings.dump(found))["schema_version"] == 1


def test_the_smallest_findings_have_a_behavior_and_nothing_else(fields: dict) -> None:
    names = ("bundle", "base", "thinking", "data", "code_version", "seed", "behaviors")
    found = Findings.model_validate({name: fields[name] for name in names})
    assert findings.parse(findings.dump(found), Path("f.json")) == found
    with pytest.raises(ValidationError, match="at least 1"):
        Findings.model_validate(fields | {"behaviors": []})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"unknown": 1}, "unknown"),
        ({"seed": "0"}, "seed: .*integer"),
        ({"transitions": [[1, 2]]}, "transitions must be 2 rows of 2 for 2 behaviors; found 1 rows"),
        ({"transitions": [[1, 2], [3]]}, r"found 2 rows of \[1, 2\]"),
        ({"transitions": [[1, 2], [3, -1]]}, "greater than or equal to 0"),
        ({"cosines": [[1, 0], [0, 1]]}, "cosines must be 3 rows of 3"),
        ({"points": [{"x": 0, "y": 0, "behavior": 2, "text": ""}]}, "points' behaviors must be below 2; found 2"),
        ({"points": [{"x": 0, "y": 0, "behavior": 0, "text": "a" * 201}]}, "at most 200"),
        ({"points": [{"x": 1e99, "y": 0, "behavior": 0, "text": ""}]}, "points.0.x"),
        ({"points": [{"x": 0, "y": 0, "behavior": 0, "text": ""}] * 4001}, "at most 4000"),
        ({"curves": {"bias": []}}, "at least 1"),
        ({"curves": {str(i): [{"step": 0, "loss": 0}] for i in range(65)}}, "at most 64"),
        ({"bundle": ""}, "bundle"),
    ],
)
def test_what_is_unsound_or_too_large_is_refused_in_one_line(fields: dict, change: dict, problem: str) -> None:
    with pytest.raises(HybridError, match=rf"^f\.json: .*{problem}") as refused:
        findings.parse(json.dumps(fields | change).encode(), Path("f.json"))
    assert "\n" not in str(refused.value)
    assert "manifest" not in str(refused.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b'{"seed": NaN}', b'{"bundle": "\\ud800"}'])
def test_what_is_no_findings_is_refused(data: bytes) -> None:
    with pytest.raises(HybridError, match=r"^f\.json: "):
        findings.parse(data, Path("f.json"))


def test_numbers_that_json_cannot_hold_are_refused(fields: dict) -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValidationError, match="finite"):
            Findings.model_validate(fields | {"holdout": {"loss": bad}})


def test_behaviors_have_their_own_keys(fields: dict) -> None:
    with pytest.raises(ValidationError, match="their own key"):
        Findings.model_validate(fields | {"behaviors": [fields["behaviors"][0]] * 2})


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "f.json").open("wb") as file:
        file.truncate(findings.MAX_BYTES + 1)
    with pytest.raises(HybridError, match="at most"):
        findings.read(tmp_path / "f.json")


def test_long_sentences_are_shortened_to_what_a_point_holds() -> None:
    assert shorten(" One. ") == "One."
    assert shorten("a" * 200) == "a" * 200
    assert shorten("a" * 201) == "a" * 199 + "…"


def test_transitions_are_counted_within_a_trace_only() -> None:
    trace = torch.tensor([0, 0, 0, 1, 1, 4])
    category = torch.tensor([0, 2, 2, 0, 2, 1])
    assert transitions(trace, category, 3).tolist() == [[0, 0, 2], [0, 0, 0], [0, 0, 1]]
    for few in (0, 1):
        assert transitions(trace[:few], category[:few], 2).tolist() == [[0, 0], [0, 0]]


def test_a_map_keeps_neighbours_together_and_is_the_same_again() -> None:
    random = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(3, 16, generator=random)
    category = torch.arange(60) % 3
    x = centres[category] + torch.randn(60, 16, generator=random)
    found = map_points(x, seed=1)
    assert found.shape == (60, 2) and found.dtype == torch.float32
    nearest = (torch.cdist(found, found) + torch.eye(60) * 1e9).argmin(1)
    assert torch.equal(category[nearest], category)
    assert torch.equal(found, map_points(x, seed=1))


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (2, 4), (9, 1), (12, 1), (12, 2), (5, 40), (3, 0)])
def test_a_map_of_few_points_or_axes_is_made_all_the_same(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).half()
    found = map_points(x, seed=0)
    assert found.shape == (shape[0], 2) and found.isfinite().all()


def test_points_that_are_all_the_same_lie_at_one_place() -> None:
    assert torch.equal(map_points(torch.full((50, 8), 0.3), seed=0), torch.zeros(50, 2))
    same_but_one = torch.zeros(50, 8)
    same_but_one[0] = 1
    assert map_points(same_but_one, seed=0).isfinite().all()


def test_a_map_of_what_is_no_number_is_refused() -> None:
    with pytest.raises(HybridError, match="numbers"):
        map_points(torch.tensor([[0.0], [float("nan")]]), seed=0)
