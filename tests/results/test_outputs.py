import logging
from pathlib import Path

import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.results.outputs import read
from tests.results.outputs import BUNDLE, PLAIN, STEERED, samples, write


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Our messages: a test that ran before may have set the harness's level."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("lm_eval_hybrid")]


def test_reads_arms_paired_by_document(tmp_path: Path) -> None:
    write(tmp_path, "thinking", {"toy": samples([1, 1])})
    write(tmp_path, "base", {"toy": samples([0, 1]), "other": samples([0])})
    write(tmp_path, "hybrid", {"toy": samples([1, 0])[::-1]}, tokens=[STEERED, PLAIN])
    found = read(tmp_path)
    assert found.tasks == ("other", "toy")
    assert list(found.arms("toy")) == ["base", "hybrid", "thinking"]
    hybrid = found.arms("toy")["hybrid"]
    assert hybrid.scores == [1, 0]
    assert [document.doc_id for document in hybrid.documents] == [0, 1]
    assert (hybrid.bundle, hybrid.seed, hybrid.tokens_per_second) == (BUNDLE, 7, 200.0)
    assert hybrid.versions == {
        "lm_eval": "0.4.13",
        "transformers": "5.23.0",
        "torch": "2.13.0+cpu",
        "lm_eval_hybrid": "0.1.0",
        "nnsight": "0.8.1",
    }


def test_fractions_are_of_tokens_not_of_documents(tmp_path: Path) -> None:
    write(tmp_path, "hybrid", {"toy": samples([1, 0])}, tokens=[STEERED, PLAIN])
    run = read(tmp_path).arms("toy")["hybrid"]
    assert run.steered_fraction == pytest.approx(3 / 9)
    assert run.changed_fraction == pytest.approx(2 / 9)
    assert run.documents[0].counts.behaviors == {"compute": 2, "check": 1}


def test_without_token_records_the_samples_fractions_are_averaged(tmp_path: Path) -> None:
    made = samples([1, 0])
    for sample, fraction in zip(made, (0.1, 0.3), strict=True):
        sample.update(steered_fraction=fraction, changed_fraction=fraction / 2)
    write(tmp_path, "hybrid", {"toy": made, "stock": samples([1])})
    toy, stock = (read(tmp_path).arms(task)["hybrid"] for task in ("toy", "stock"))
    assert (toy.steered_fraction, toy.changed_fraction) == (pytest.approx(0.2), pytest.approx(0.1))
    assert (stock.steered_fraction, stock.changed_fraction) == (None, None)


def test_changed_is_unknown_where_base_was_not_run(tmp_path: Path) -> None:
    write(tmp_path, "thinking", {"toy": samples([1])}, tokens=[STEERED], base_runs=False)
    run = read(tmp_path).arms("toy")["thinking"]
    assert (run.steered_fraction, run.changed_fraction) == (0.5, None)


def test_newest_run_of_an_arm_counts_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = write(tmp_path / "z", "base", {"toy": samples([0, 0]), "other": samples([1])})
    new = write(tmp_path / "a", "base", {"toy": samples([1, 1])})
    with caplog.at_level(logging.INFO):
        found = read(tmp_path)
    assert found.arms("toy")["base"].scores == [1, 1]
    assert found.arms("other")["base"].scores == [1]
    (message,) = ours(caplog)
    assert message == f"toy, arm base: {new} counts; older {old} ignored"


def test_every_filter_of_a_task_is_compared_apart(tmp_path: Path) -> None:
    made = samples([1, 0], filters=("strict-match", "flexible-extract"))
    made[3]["exact_match"] = 1.0
    write(tmp_path, "base", {"gsm8k": made})
    found = read(tmp_path)
    assert found.tasks == ("gsm8k:flexible-extract", "gsm8k:strict-match")
    assert found.arms("gsm8k:flexible-extract")["base"].scores == [1, 1]
    assert found.arms("gsm8k:strict-match")["base"].scores == [1, 0]


def test_results_that_the_user_named_are_found(tmp_path: Path) -> None:
    write(tmp_path / "my_name.json", "base", {"toy": samples([1])})
    assert read(tmp_path).arms("toy")["base"].scores == [1]


def test_answer_reads_one_document_with_its_records(tmp_path: Path) -> None:
    write(tmp_path, "hybrid", {"toy": samples([1, 0])}, tokens=[PLAIN, STEERED])
    run = read(tmp_path).arms("toy")["hybrid"]
    answer = run.answer(1)
    assert (answer.task, answer.arm, answer.finish) == ("toy", "hybrid", "stop")
    assert answer.prompt == "Question: How many? 1\nAnswer:"
    assert "".join(record.text for record in answer.records) == answer.text == " So 4 apples. Check it"
    with pytest.raises(HybridError, match="has no document 5"):
        run.answer(5)


def test_answer_without_sidecar_asks_for_one(tmp_path: Path) -> None:
    write(tmp_path, "hybrid", {"toy": samples([1])})
    with pytest.raises(HybridError, match=r"has no token records; .*--log_samples"):
        read(tmp_path).arms("toy")["hybrid"].answer(0)


def test_other_models_and_files_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "base", {"toy": samples([1])})
    write(tmp_path, None, {"toy": samples([1])})
    (tmp_path / "results_2026-01-01T00-00-00.json").write_text("{half")
    (tmp_path / "notes.json").write_text("[]")
    assert len(read(tmp_path).runs) == 1
    assert sorted(message.split(" is ")[1] for message in ours(caplog)) == [
        "no results file of the harness; ignored",
        "not a run of model hybrid; ignored",
    ]


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_no_results(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(HybridError, match=r"has no results of model hybrid .* run lm_eval --model hybrid"):
        read(tmp_path / name)


def test_no_samples(tmp_path: Path) -> None:
    write(tmp_path, "base", {"toy": None})
    with pytest.raises(HybridError, match=r"samples are needed.*run again with --log_samples"):
        read(tmp_path)


def test_no_exact_match(tmp_path: Path) -> None:
    made = samples([1])
    del made[0]["exact_match"]
    made[0]["metrics"] = ["bypass"]
    write(tmp_path, "base", {"toy": made})
    with pytest.raises(HybridError, match="scored by bypass; a comparison needs exact_match"):
        read(tmp_path)


@pytest.mark.parametrize("role", ["base", "thinking"])
def test_other_models_in_one_comparison(tmp_path: Path, role: str) -> None:
    write(tmp_path, "base", {"toy": samples([1]), "other": samples([1])})
    write(tmp_path, "hybrid", {"toy": samples([1])})
    write(tmp_path, "takeover", {"toy": samples([1])}, **{f"hybrid_{role}": "elsewhere@222222222222"})
    with pytest.raises(HybridError, match=rf"{role} models .*embedded:{role}@.* and elsewhere@.* \(takeover\)"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["samples", "tokens"])
@pytest.mark.parametrize(
    "line", [b"[]", b"7", b"null", b"{}", b'{"exact_match": null}', b'{"schema_version": 2, "records": [3]}', b'"\xff"']
)
def test_foreign_lines_are_named(tmp_path: Path, name: str, line: bytes) -> None:
    written = write(tmp_path, "hybrid", {"toy": samples([1, 0])}, tokens=[PLAIN, PLAIN])
    (path,) = written.parent.glob(f"{name}_toy_*")
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] + line + b"\n")
    with pytest.raises(HybridError, match=rf"{path.name}:2: ") as failure:
        read(tmp_path)
    assert "\n" not in str(failure.value)


def test_foreign_records_of_an_answer_are_named(tmp_path: Path) -> None:
    written = write(tmp_path, "hybrid", {"toy": samples([1])}, tokens=[PLAIN])
    (path,) = written.parent.glob("tokens_toy_*")
    path.write_text(path.read_text().replace('"coefficient"', '"force"'))
    with pytest.raises(HybridError, match=r"jsonl:1: .*force"):
        read(tmp_path).arms("toy")["hybrid"].answer(0)


def test_broken_samples(tmp_path: Path) -> None:
    written = write(tmp_path, "base", {"toy": samples([1, 0])})
    (path,) = written.parent.glob("samples_toy_*")
    path.write_text(path.read_text()[:-20])
    with pytest.raises(HybridError, match="jsonl:2: not JSON"):
        read(tmp_path)


def test_token_records_of_another_schema(tmp_path: Path) -> None:
    written = write(tmp_path, "hybrid", {"toy": samples([1])}, tokens=[PLAIN])
    (path,) = written.parent.glob("tokens_toy_*")
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    with pytest.raises(HybridError, match="schema version 1; must be 2"):
        read(tmp_path)


def test_a_run_from_the_cache_has_no_speed(tmp_path: Path) -> None:
    write(tmp_path, "base", {"toy": samples([1])}, hybrid_totals={"tokens": 0, "tokens_per_second": None})
    assert read(tmp_path).arms("toy")["base"].tokens_per_second is None


def test_different_limits(tmp_path: Path) -> None:
    write(tmp_path, "base", {"toy": samples([1, 0])}, limit=2)
    write(tmp_path, "hybrid", {"toy": samples([1])}, limit=1)
    with pytest.raises(HybridError, match="arms base and hybrid of toy have limits 2 and 1"):
        read(tmp_path)


def test_different_documents(tmp_path: Path) -> None:
    write(tmp_path, "base", {"toy": samples([1, 0])})
    write(tmp_path, "hybrid", {"toy": samples([1, 0], question="How much?")})
    with pytest.raises(HybridError, match="have 2 and 2 documents that are not the same"):
        read(tmp_path)


def test_a_limit_that_takes_the_same_documents_is_no_difference(tmp_path: Path) -> None:
    write(tmp_path, "base", {"toy": samples([1, 0])}, limit=2)
    write(tmp_path, "hybrid", {"toy": samples([1, 0])})
    assert len(read(tmp_path).runs) == 2


def test_different_prompts_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "base", {"toy": samples([1])})
    shot = samples([1])
    shot[0]["prompt_hash"] = "other"
    write(tmp_path, "hybrid", {"toy": shot})
    assert len(read(tmp_path).runs) == 2
    assert "arms base and hybrid of toy had different prompts" in caplog.text


def test_arms_of_other_versions_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for arm, version in (("base", "0.1.0"), ("hybrid", "0.2.0")):
        write(tmp_path, arm, {"toy": samples([1, 0])}, hybrid_version=version)
    read(tmp_path)
    assert "arms base and hybrid of toy were run with lm_eval_hybrid 0.1.0 and 0.2.0" in caplog.text


def test_what_is_being_written_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, "base", {"toy": samples([1, 0])})
    write(tmp_path / ".writing-1", "hybrid", {"toy": samples([1])})
    assert list(read(tmp_path).arms("toy")) == ["base"]


def test_a_behavior_left_out_makes_an_arm_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, "hybrid", {"toy": samples([1, 1])})
    write(tmp_path, "hybrid", {"toy": samples([0, 1])}, hybrid_without=["plan"])
    arms = read(tmp_path).arms("toy")
    assert {arm: run.scores for arm, run in arms.items()} == {"hybrid": [1, 1], "without plan": [0, 1]}
