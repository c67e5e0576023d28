import json
from pathlib import Path

import pytest
import torch

from benchmarks.activations import embedded, main, parsed, tokens_in_batches
from lm_eval_hybrid.bundles.manifest import PromptSpec
from lm_eval_hybrid.discovery.activations import store
from lm_eval_hybrid.discovery.traces.pair import ModelPair
from lm_eval_hybrid.discovery.traces.trace import Trace


@pytest.mark.slow
def test_quick_run_measures_both(tmp_path: Path) -> None:
    (result,) = main(["--quick", "--threads", "1", "--out", str(tmp_path)])
    assert result.layers == [0, 1, 2, 3] and result.traces == 8 and result.tokens > 100
    assert len(result.collect) == len(result.bare) == 1 and result.speed.median > 0
    text = (tmp_path / "activations.txt").read_text(encoding="utf-8")
    assert "collect / bare" in text and str(result.speed) in text
    (content,) = json.loads((tmp_path / "activations.json").read_text(encoding="utf-8"))
    assert content["collect"] == result.collect and content["bare"] == result.bare


def test_both_read_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PASS_TOKENS", 60)
    backend = embedded()
    pair = ModelPair(backend, backend, PromptSpec(thinking="raw"))
    traces = [Trace("Question: 1 + 1?\nAnswer:", " It is 2." * n) for n in (1, 5, 3, 1)]
    widths: list[torch.Size] = []
    handle = backend.layers[0]._module.register_forward_hook(
        lambda module, inputs, output: widths.append(output.shape[:2])
    )
    try:
        store.collect(tmp_path, pair, traces, (3,))
    finally:
        handle.remove()
    batches = tokens_in_batches(pair, traces)
    assert [(len(rows), max(map(len, rows))) for rows in batches] == widths
    assert len(batches) > 1


@pytest.mark.parametrize("option", [["--traces", "0"], ["--layers", "0"], ["--rounds", "0"]])
def test_numbers_that_cannot_be_are_refused(option: list[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(option)
