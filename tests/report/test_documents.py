import base64
import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from lm_eval_hybrid.report import documents
from lm_eval_hybrid.report.documents import DocumentPack, numbered, pack
from lm_eval_hybrid.results.comparison import compare
from lm_eval_hybrid.results.outputs import read
from tests.results.outputs import PLAIN, STEERED, Token, samples, write


def packs(folder: Path, limit: int = documents.LIMIT) -> list[DocumentPack]:
    runs = read(folder)
    return pack(runs, compare(runs), limit)


def unpacked(text: str) -> Any:
    return json.loads(zlib.decompress(base64.b64decode(text)))


def contents(found: DocumentPack) -> dict[int, list[Any]]:
    """The content of all blocks by arm, one value for each document; arm -1 has the documents themselves."""
    held: dict[int, list[Any]] = {}
    numbers: Counter[int] = Counter()
    for block in found.blocks:
        _, arm, number = named(block.name)
        assert number == numbers[arm]
        numbers[arm] += 1
        held.setdefault(arm, []).extend(unpacked(block.text))
    return held


def named(name: str) -> tuple[int, ...]:
    """Indices of task, arm and block in a block's name."""
    return tuple(map(int, re.fullmatch(r"(\d+)-(-?\d+)-(\d+)", name).groups()))


def texts(arms: Iterable[str], length: int, folder: Path, task: str = "toy") -> None:
    """Write runs on 100 documents with random answers, which hardly compress."""
    draw = random.Random(0)
    for arm in arms:
        made = samples([1] * 100)
        for sample in made:
            sample["resps"] = [["".join(draw.choices("abcdefgh", k=length))]]
        write(folder, arm, {task: made})


def three(folder: Path) -> None:
    for arm, scores in (("base", [1, 0, 0]), ("hybrid", [1, 1, 0]), ("thinking", [1, 1, 1])):
        told = [STEERED if arm == "hybrid" else PLAIN] * 3
        write(folder, arm, {"toy": samples(scores)}, tokens=told, base_runs=arm != "thinking")


def test_the_index_has_everything_that_the_list_shows(tmp_path: Path) -> None:
    three(tmp_path)
    (found,) = packs(tmp_path)
    index = unpacked(found.index.text)
    assert index["task"] == "toy" and index["arms"] == ["base", "hybrid", "thinking"] and index["core"] == [0, 1, 2]
    assert index["ids"] == [0, 1, 2] and index["questions"] == ["How many? 0", "How many? 1", "How many? 2"]
    assert index["behaviors"] == ["compute", "check"] and index["used"] == [[0, 1]] * 3
    base, hybrid, thinking = index["outcomes"]
    assert [arm["right"] for arm in (base, hybrid, thinking)] == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert (hybrid["tokens"], hybrid["steered"], hybrid["truncated"]) == ([6] * 3, [3] * 3, [0] * 3)
    assert (base["tokens"], base["steered"], base["unfinished"]) == ([3] * 3, [0] * 3, [None] * 3)
    assert found.left_out == () and index["blocks"] == [[[0, 3]]] * 4


def test_answers_are_texts_and_the_hybrids_are_pieces(tmp_path: Path) -> None:
    three(tmp_path)
    held = contents(packs(tmp_path)[0])
    assert held[-1][1] == ["How many? 1", "4", "Question: How many? 1\nAnswer:"]
    assert held[0] == [[" 4 apples.", "4"]] * 3 == held[2]
    pieces, read_as = held[1][0]
    # Text, behavior, coefficient, window, changed, and probabilities: exp(-1/4) of the token by the thinking model,
    # exp(-1/2) and exp(-1/8) of what base and thinking model would have said.
    so = [" So", 0, 1.0, 0, 1, 0.778801, "token 11", 0.606531, " So", 0.882497]
    four = [" 4", 0, 1.0, 0, 0, 0.778801, " 4", 0.606531, " 4", 0.882497]
    check = [" Check", 1, 1.0, 0, 1, 0.778801, "token 15", 0.606531, " Check", 0.882497]
    assert pieces == [so, four, " apples.", check, " it"]
    assert read_as == "4"


def test_the_read_answer_is_left_out_where_it_is_the_whole_text(tmp_path: Path) -> None:
    made = samples([1, 1])
    made[0]["filtered_resps"] = [" 4 apples. "]
    made[1]["filtered_resps"] = [["[invalid]"]]
    write(tmp_path, "base", {"toy": made})
    assert [read_as for _, read_as in contents(packs(tmp_path)[0])[0]] == [None, "[invalid]"]


def test_a_token_steered_without_a_behavior_counts_for_the_bias(tmp_path: Path) -> None:
    three(tmp_path)
    path = next(path for path in tmp_path.rglob("tokens_*.jsonl") if '"arm": "hybrid"' in path.read_text())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for record in lines[1]["records"]:
        record |= {"behavior": None, "category": None, "coefficient": None, "window": None}
    lines[1]["words"] = {"11": "\n"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = packs(tmp_path)
    index = unpacked(found.index.text)
    assert index["behaviors"] == ["compute", "bias", "check"] and index["used"] == [[0, 2], [1], [0, 2]]
    first = contents(found)[1][1][0][0]
    assert first[:7] == [" So", 1, None, None, 1, 0.778801, "\n"]


def test_one_behavior_has_one_number_in_all_tasks(tmp_path: Path) -> None:
    once: tuple[Token, ...] = ((" a", "rare", True), (" b", "common", True), (" c", None, False))
    often: tuple[Token, ...] = ((" b", "common", True),) * 3
    write(tmp_path, "hybrid", {"one": samples([1])}, tokens=[once])
    write(tmp_path, "hybrid", {"two": samples([1])}, tokens=[often])
    runs = read(tmp_path)
    assert numbered(compare(runs)) == {"common": 0, "rare": 1}
    one, two = packs(tmp_path)
    assert contents(one)[0][0][0][0][:2] == [" a", 1] and contents(two)[0][0][0][0][:2] == [" b", 0]
    assert {block.name.split("-")[0] for found in (one, two) for block in found.blocks} == {"0", "1"}


def test_runs_without_token_records_are_packed_from_their_samples(tmp_path: Path) -> None:
    write(tmp_path, "hybrid", {"toy": samples([1, 0])})
    (found,) = packs(tmp_path)
    index = unpacked(found.index.text)
    assert contents(found)[0] == [[" 4 apples.", "4"]] * 2
    assert index["outcomes"][0]["tokens"] == [None, None] and index["used"] == [[], []] and index["behaviors"] == []


def test_each_filter_of_a_task_has_its_own_read_answers(tmp_path: Path) -> None:
    made = samples([1, 0], filters=("strict", "lenient"))
    for sample in made:
        sample["filtered_resps"] = [f"{sample['filter']} {sample['doc_id']}"]
    write(tmp_path, "base", {"toy": made})
    found = {unpacked(each.index.text)["task"]: contents(each)[0] for each in packs(tmp_path)}
    assert found == {f"toy:{name}": [[" 4 apples.", f"{name} {i}"] for i in range(2)] for name in ("strict", "lenient")}


@pytest.mark.parametrize(
    ("doc", "question"),
    [
        ({"problem": "A problem", "answer": "1"}, "A problem"),
        ({"question": "A question", "input": "not it"}, "A question"),
        ({"goal": "unknown to us"}, "the prompt"),
        ({"question": ["not", "a text"]}, "the prompt"),
        ("a text", "a text"),
        (None, "the prompt"),
    ],
)
def test_the_question_is_found_under_the_names_that_data_sets_use(tmp_path: Path, doc: Any, question: str) -> None:
    made = samples([1])
    made[0] |= {"doc": doc, "arguments": [("the prompt", {})]}
    write(tmp_path, "base", {"toy": made})
    (found,) = packs(tmp_path)
    assert contents(found)[-1] == [[question, "4", "the prompt"]]
    assert unpacked(found.index.text)["questions"] == [question]


def test_blocks_end_after_50_documents_or_a_million_characters(tmp_path: Path) -> None:
    made = samples([1] * 120)
    for sample in made[60:63]:
        sample["resps"] = [["x" * 400_000]]
    write(tmp_path, "base", {"toy": made})
    (found,) = packs(tmp_path)
    spans = unpacked(found.index.text)["blocks"]
    assert spans == [[[0, 50], [50, 100], [100, 120]], [[0, 50], [50, 62], [62, 112], [112, 120]]]
    assert len(contents(found)[0]) == 120 and len(contents(found)[0][62][0]) == 400_000
    assert unpacked(found.index.text)["ids"] == list(range(120))


def test_above_the_limit_the_least_important_answers_are_left_out(tmp_path: Path) -> None:
    texts(("bias-only", "hybrid", "base", "takeover"), 1000, tmp_path)
    (whole,) = packs(tmp_path)
    assert whole.left_out == ()
    size = sum(len(block.text) for block in whole.blocks)
    sizes = {arm: sum(len(block.text) for block in whole.blocks if named(block.name)[1] == arm) for arm in range(-1, 4)}
    (most,) = packs(tmp_path, size - 1)
    assert most.left_out == (("bias-only", 50),)
    (some,) = packs(tmp_path, sizes[-1] + sizes[0] + sizes[1] + 10)
    assert some.left_out == (("takeover", 100), ("bias-only", 100))
    (few,) = packs(tmp_path, sizes[-1] + sizes[0] + sizes[1] - 10)
    assert few.left_out == (("hybrid", 50), ("takeover", 100), ("bias-only", 100))
    assert unpacked(few.index.text)["blocks"] == [[[0, 50], [50, 100]], [[0, 50], [50, 100]], [[0, 50]], [], []]
    (none,) = packs(tmp_path, 0)
    assert none.blocks == () and len(none.left_out) == 4 and len(unpacked(none.index.text)["ids"]) == 100


def test_tasks_share_the_limit(tmp_path: Path) -> None:
    texts(["base"], 5000, tmp_path, "long")
    texts(["base"], 10, tmp_path, "short")
    long, short = packs(tmp_path, 200_000)
    assert long.left_out == (("base", 100),) and short.left_out == ()


def test_characters_that_html_cannot_hold_are_replaced(tmp_path: Path) -> None:
    made = samples([1])
    made[0]["resps"], made[0]["target"] = [["a\x00b\x1b[31mHALFc\n\td"]], "\x9b"
    write(tmp_path, "base", {"toy": made})
    (path,) = tmp_path.rglob("samples_*.jsonl")
    path.write_text(path.read_text().replace("HALF", "\\ud800"))  # of a character; other programs write such
    held = contents(packs(tmp_path)[0])
    mark = "\N{REPLACEMENT CHARACTER}"
    assert held[0][0][0] == f"a{mark}b{mark}[31m{mark}c\n\td" and held[-1][0][1] == mark
