import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lm_eval_hybrid.report import comparison_page
from lm_eval_hybrid.report.answer import PALETTE
from lm_eval_hybrid.report.charts import gap_axis, gap_row, spread
from lm_eval_hybrid.report.comparison_page import INK, PAPER, STRENGTH, render, shade, write
from lm_eval_hybrid.report.documents import pack
from lm_eval_hybrid.report.page import digest
from lm_eval_hybrid.results.comparison import compare
from lm_eval_hybrid.results.outputs import read
from tests.report.pages import HOSTILE, Element, parse
from tests.report.test_answer import luminance
from tests.report.test_documents import unpacked
from tests.results.outputs import PLAIN, STEERED, samples
from tests.results.outputs import write as write_run

BASE = [1] * 30 + [0] * 70
HYBRID = [1] * 85 + [0] * 15
THINKING = [1] * 95 + [0] * 5
HARM = [1] * 10 + [0] * 90
ARMS = {"base": BASE, "hybrid": HYBRID, "thinking": THINKING, "random-category": HARM}
WITHOUT = [1] * 55 + [0] * 45


def whole(folder: Path) -> None:
    """Write runs of four arms on 100 documents, and of the hybrid without a behavior."""
    for arm, scores in ARMS.items():
        tokens = [STEERED] * 50 + [PLAIN] * 50 if arm == "hybrid" else [PLAIN] * 100
        write_run(folder, arm, {"toy": samples(scores)}, tokens=tokens, hybrid_fingerprint=f"{arm:x<64}")
    left_out = {"hybrid_without": ["check"], "hybrid_bundle": "embedded@1.0.0#0123456789ab[compute]"}
    write_run(folder, "hybrid", {"toy": samples(WITHOUT)}, tokens=[PLAIN] * 100, **left_out)


def page(folder: Path, seed: int = 0, recorded: dict[str, Any] | None = None) -> Element:
    runs = read(folder)
    return parse(render(runs, compare(runs, seed), seed, recorded))


def section(found: Element, task: int = 1) -> Element:
    return found.one("section", id=f"results-{task}")


def index(found: Element, task: int = 0) -> Any:
    held = found.one("script", id=f"pack-{task}")
    assert held.attributes["class"] == "index"
    return unpacked(json.loads(held.text))


def test_the_table_has_every_figure_of_every_arm(tmp_path: Path) -> None:
    whole(tmp_path)
    rows = {row[0]: row[1:] for row in section(page(tmp_path)).one("table", class_="arms").rows()}
    assert list(rows) == ["base", "hybrid", "thinking", "random-category"]  # the fifth is in the table of behaviors
    (task,) = compare(read(tmp_path))
    gap, against = task.arm("hybrid").gap, task.arm("random-category").against.difference
    dash = "\N{EN DASH}"
    shown = f"+84.6% [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
    # 50 answers of 6 tokens, 3 of them steered and 2 changed, and 50 of 3 tokens.
    assert rows["hybrid"] == ["85.0% [76.7, 90.7]", shown, "33.3%", "22.2%", "4.5", "0", dash, dash, dash]
    difference = f"+75.0 [{100 * against.low:+.1f}, {100 * against.high:+.1f}]"
    assert rows["random-category"][0::7] == ["10.0% [5.5, 17.4]", difference]
    assert rows["random-category"][1].startswith("\N{MINUS SIGN}30.8% [\N{MINUS SIGN}")
    assert rows["random-category"][8] == "<0.001" and rows["base"][1] == dash


def test_tiles_sum_up_the_hybrid(tmp_path: Path) -> None:
    whole(tmp_path)
    write_run(tmp_path, "takeover", {"toy": samples(THINKING)}, tokens=[PLAIN] * 100)
    tiles = [(item.one("b").text, item.text) for item in section(page(tmp_path)).one("ul", class_="figures").all("li")]
    assert [value for value, _ in tiles] == ["+84.6%", "30.0% → 85.0%", "33.3%", "+100.0%"]
    assert "; 95%: [+" in tiles[0][1] and "thinking model: 95.0%" in tiles[1][1]
    assert "22.2% differ from the base's own choice" in tiles[2][1]
    assert tiles[3][1].endswith("takeover, the strongest control")


def test_gaps_are_drawn_at_their_values(tmp_path: Path) -> None:
    whole(tmp_path)
    figure = section(page(tmp_path)).one("figure", class_="gaps")
    (task,) = compare(read(tmp_path))
    at = {}
    for row in figure.one("tbody").all("tr")[:-1]:
        name, value = row.one("th").text, row.all("td")[1].text
        (marker,) = [each for each in row.all("svg") if "x" in each.attributes]
        line = next(each for each in row.all("line") if "whisker" in (each.attributes["class"] or ""))
        kind = (marker.one("path").attributes["class"] or "").split()[1]
        ends = [float((line.attributes[end] or "").rstrip("%")) for end in ("x1", "x2")]
        at[name] = (float((marker.attributes["x"] or "").rstrip("%")), ends, kind, value)
    zero, one = (float((line.attributes["x1"] or "").rstrip("%")) for line in figure.all("line", class_="axis")[:2])
    assert list(at) == ["hybrid", "random-category", "without check"]
    for name, (place, ends, _, value) in at.items():
        gap = task.arm(name).gap
        for shown, true in zip((place, *ends), (gap.recovered, gap.low, gap.high), strict=True):
            assert (shown - zero) / (one - zero) == pytest.approx(true, abs=0.001)
        assert value.replace("\N{MINUS SIGN}", "-") == f"{gap.recovered:+.1%}"
    assert [kind for _, _, kind, _ in at.values()] == ["hybrid", "harm", "without"]
    assert at["random-category"][1][1] < zero
    ticks = [tick.text for tick in figure.one("tr", class_="scale").all("text")]
    assert "0%" in ticks and "100%" in ticks and ticks[0].startswith("\N{MINUS SIGN}")


def test_the_accuracy_chart_has_a_point_for_each_arm(tmp_path: Path) -> None:
    whole(tmp_path)
    picture = section(page(tmp_path)).one("svg", class_="natural")
    hints = {title.text.split(":")[0]: title.text for title in picture.all("title")}
    # The thinking model is a line; the hybrid is drawn last, above the others.
    assert list(hints) == ["without check", "base", "random-category", "hybrid"]
    assert hints["hybrid"] == "hybrid: accuracy 85.0% [76.7, 90.7], 33.3% of the tokens steered"
    # Names are in the order of accuracy; an arm without a behavior has none.
    assert picture.all("line", class_="thinking-line")
    assert [text.text for text in picture.all("text", class_="name")] == [
        *("thinking model", "hybrid", "base", "random-category"),
    ]


def test_behaviors_have_their_share_and_the_accuracy_lost_without_them(tmp_path: Path) -> None:
    whole(tmp_path)
    found = section(page(tmp_path))
    rows = found.one("table", class_="behaviors").rows()
    (task,) = compare(read(tmp_path))
    lost = task.behaviors[1].left_out
    dash = "\N{EN DASH}"
    shown = f"+30.0 [{100 * lost.difference.low:+.1f}, {100 * lost.difference.high:+.1f}]"
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["1", "compute", "66.7%", "100", "50", dash, dash],
        ["2", "check", "33.3%", "50", "50", shown, "<0.001"],
    ]
    bars = [row.one("rect").attributes for row in found.one("table", class_="behaviors").one("tbody").all("tr")]
    assert [bar["width"] for bar in bars] == ["66.67%", "33.33%"]
    assert "leave-one-out" not in found.text


def test_the_page_says_how_to_run_the_hybrid_without_each_behavior(tmp_path: Path) -> None:
    write_run(tmp_path, "hybrid", {"toy": samples([1])}, tokens=[STEERED])
    write_run(tmp_path, "base", {"toy": samples([0])}, tokens=[PLAIN])
    found = section(page(tmp_path))
    assert "was not run; to run it: lm-eval-hybrid run --arms base,hybrid,leave-one-out." in found.text
    assert len(found.one("table", class_="behaviors").rows()[0]) == 5


def test_the_page_gives_its_provenance(tmp_path: Path) -> None:
    whole(tmp_path)
    hardware = {"machine": "x86_64", "cores": 2, "gpus": ["H100", "H100"], "none": []}
    provenance = page(tmp_path, 3, {"command": "lm-eval-hybrid run --out x", "hardware": hardware}).one(
        "section", id="provenance"
    )
    assert provenance.one("pre").text == "lm-eval-hybrid run --out x"
    terms = [term.text for term in provenance.all("dt")]
    facts = dict(zip(terms, [value.text for value in provenance.all("dd")], strict=True))
    assert facts["Bundle"] == "embedded@1.0.0#0123456789ab"
    assert facts["Models"] == "base embedded:base@000000000000; thinking embedded:thinking@111111111111"
    assert facts["Seeds"] == "decoding 7; bootstrap 3 (10,000 resamples)"
    assert facts["Hardware"] == "machine x86_64; cores 2; gpus H100, H100"
    assert "open" not in provenance.one("details").attributes
    rows = provenance.rows()
    assert [row[:2] for row in rows][:2] == [["toy", "base"], ["toy", "hybrid"]]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d\xa0\d\d:\d\d:\d\d", rows[0][2])
    assert rows[1][3:] == ["\N{EN DASH}", "200", "hybridxxxxxxxxxx"]


@pytest.mark.parametrize(
    "made", [{}, {"command": ["a", "list"], "hardware": "a word"}, {"command": "", "hardware": {}}]
)
def test_a_gap_file_without_command_and_hardware_adds_nothing(tmp_path: Path, made: dict) -> None:
    write_run(tmp_path, "hybrid", {"toy": samples([1])})
    provenance = page(tmp_path, recorded=made).one("section", id="provenance")
    assert provenance.all("pre") == [] and "Hardware" not in provenance.text
    assert "open" in provenance.one("details").attributes


@pytest.mark.parametrize(
    ("arms", "notes"),
    [
        (["hybrid"], ["Not run: base and thinking", "No token records (tokens_*.jsonl) of hybrid"]),
        (["base", "thinking"], ["Not run: hybrid", "No token records (tokens_*.jsonl) of base and thinking"]),
        (
            ["takeover"],
            ["Not run: base and thinking", "Not run: hybrid", "No token records (tokens_*.jsonl) of takeover"],
        ),
        (["base", "hybrid", "thinking"], ["No token records (tokens_*.jsonl) of base, hybrid and thinking"]),
    ],
)
def test_the_page_of_any_arms_notes_what_is_missing(tmp_path: Path, arms: list[str], notes: list[str]) -> None:
    for arm in arms:
        write_run(tmp_path, arm, {"toy": samples(ARMS.get(arm, THINKING))})
    found = page(tmp_path)
    shown = [note.text for note in section(found).all("p", class_="note")]
    assert len(shown) == len(notes) and all(map(str.startswith, shown, notes)), shown
    assert [row[0] for row in section(found).one("table", class_="arms").rows()] == arms
    assert index(found)["arms"] == arms
    assert (len(section(found).all("figure", class_="gaps")) == 1) is (len(arms) == 3)
    assert not re.search(r"\b(None|nan)\b", found.one("main").text)


def test_undefined_gaps_give_the_reason(tmp_path: Path) -> None:
    for arm, scores in (("base", THINKING), ("hybrid", HYBRID), ("thinking", BASE)):
        write_run(tmp_path, arm, {"a-inverted": samples(scores)})
    for arm, scores in {"base": [0, 0, 1, 0], "hybrid": [1, 0, 1, 0], "thinking": [1, 1, 0, 0]}.items():
        write_run(tmp_path, arm, {"b-few": samples(scores)})
    found = page(tmp_path)
    row = section(found, 1).one("table", class_="arms").rows()[1]
    assert row[2] == "undefined: thinking is not above base"
    assert section(found, 1).one("figure", class_="gaps").one("tbody").all("tr")[0].all("td")[1].text == "undefined"
    assert "+100.0% no interval: thinking is not above" in section(found, 2).one("table", class_="arms").rows()[1][2]
    figure = section(found, 2).one("figure", class_="gaps")
    assert figure.one("tbody").all("tr")[0].all("td")[1].text == "+100.0%, no interval"
    assert [line for line in figure.all("line") if "whisker" in (line.attributes["class"] or "")] == []


def test_different_prompts_are_noted(tmp_path: Path) -> None:
    write_run(tmp_path, "base", {"toy": samples([1])})
    made = samples([1])
    made[0]["prompt_hash"] = "another"
    write_run(tmp_path, "thinking", {"toy": made})
    notes = [note.text for note in section(page(tmp_path)).all("p", class_="note")]
    assert "Prompts of thinking differ from those of base; the page shows the latter." in notes


def test_answers_left_out_are_noted(tmp_path: Path) -> None:
    for arm in ("base", "takeover"):
        write_run(tmp_path, arm, {"toy": samples([1] * 60)}, tokens=[PLAIN] * 60)
    runs = read(tmp_path)
    (task,) = compare(runs)
    (held,) = pack(runs, [task], limit=100)
    *_, note = comparison_page._notes(task, runs.arms("toy"), held)
    assert note.startswith("Answers of base (60 of 60 documents) and takeover (60 of 60 documents) are left out")


@pytest.mark.parametrize("words", HOSTILE)
def test_text_of_models_and_data_is_escaped_everywhere(tmp_path: Path, words: str) -> None:
    for arm, score in (("base", 0), ("hybrid", 1), ("thinking", 1)):
        write_run(tmp_path, arm, {"toy": samples([score])}, tokens=[STEERED])
    plain = {element.name for element in page(tmp_path).walk()}
    made = samples([1], filters=(words, "another"), question=words)
    for sample in made:
        sample |= {"target": words, "filtered_resps": [words]}
    tokens = [((words, words, True), (words, None, False))]
    config = {"hybrid_base": words, "hybrid_fingerprint": words, "hybrid_version": words, "hybrid_bundle": words}
    write_run(tmp_path, "hybrid", {"toy": made}, tokens=tokens, **config)
    write_run(tmp_path, "hybrid", {"toy": made}, tokens=tokens, hybrid_without=[words, "x"], **config)
    for arm, score in (("base", 0.0), ("thinking", 1.0)):
        write_run(tmp_path, arm, {"toy": [sample | {"exact_match": score} for sample in made]}, hybrid_base=words)
    found = page(tmp_path, recorded={"command": words, "hardware": {words: words}})
    for where in ("header", "title", "pre", "dl", "nav"):
        assert any(words in element.text for element in found.all(where)), where
    mine = next(part for part in found.all("section", class_="results") if words in part.one("h2").text)
    for where in ("arms", "behaviors"):
        assert words in mine.one("table", class_=where).text
    assert words in mine.one("figure", class_="gaps").text and words in mine.one("svg", class_="natural").text
    assert {element.name for element in found.walk()} <= plain | {"pre"}
    assert len(found.all("style")) == 1 and len([s for s in found.all("script") if "type" not in s.attributes]) == 1
    assert not [key for element in found.walk() for key in element.attributes if key.startswith("on") or key == "style"]
    held = next(held for held in (index(found, task) for task in range(3)) if held["task"] == f"toy:{words}")
    assert held["questions"] == [f"{words} 0"] and words in held["behaviors"] and f"without {words}, x" in held["arms"]
    blocks = [unpacked(json.loads(block.text)) for block in found.all("script", type="application/json")]
    number = held["behaviors"].index(words)
    steered = [words, number, 1.0, 0, 1, 0.778801, "token 11", 0.606531, words, 0.882497]
    assert [[[steered, words], words]] in blocks


def test_packed_data_cannot_end_their_element(tmp_path: Path) -> None:
    write_run(tmp_path, "base", {"toy": samples([1], question="</script>")})
    for block in page(tmp_path).all("script", type="application/json"):
        assert re.fullmatch(r'"[A-Za-z0-9+/=]+"', block.text)


def test_characters_that_html_cannot_hold_are_replaced(tmp_path: Path) -> None:
    write_run(tmp_path, "hybrid", {"toy": samples([1])}, hybrid_bundle="a\x00b\x1b", tokens=[((" a", "\x07", True),)])
    found = page(tmp_path)
    mark = "\N{REPLACEMENT CHARACTER}"
    assert found.one("h1").text == f"Comparison of arms: a{mark}b{mark}" and index(found)["behaviors"] == [mark]


def test_the_page_loads_nothing_and_allows_only_its_own_style_and_script(tmp_path: Path) -> None:
    whole(tmp_path)
    found = page(tmp_path)
    for element in found.walk():
        assert "src" not in element.attributes
        assert (element.attributes.get("href") or "#").startswith("#")
    (script,) = [each for each in found.all("script") if "type" not in each.attributes]
    style = found.one("style")
    assert "url(" not in style.text and "@import" not in style.text
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch("):
        assert forbidden not in script.text
    policy = found.one("meta", http_equiv="Content-Security-Policy").attributes["content"] or ""
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "style-src": f"'{digest(style.text)}'",
        "script-src": f"'{digest(script.text)}'",
    }


def test_the_same_runs_make_the_same_bytes(tmp_path: Path) -> None:
    whole(tmp_path / "runs")
    runs = read(tmp_path / "runs")
    write(runs, compare(runs), 0, tmp_path / "deep" / "page.html")
    assert (tmp_path / "deep" / "page.html").read_bytes() == render(runs, compare(runs), 0).encode()


def test_text_is_readable_on_every_behaviors_colour_in_both_themes() -> None:
    for ink, paper, strength in zip(INK, PAPER, STRENGTH, strict=True):
        for colour in PALETTE:
            light, dark = sorted((luminance(ink), luminance(shade(colour, paper, strength))), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG AA
    assert shade("#ff8000", "#000000", 1.0) == "#ff8000" and shade("#ff8000", "#000000", 0.5) == "#804000"


def test_text_colours_are_readable_in_both_themes() -> None:
    css = (Path(comparison_page.__file__).parent / "page.css").read_text(encoding="utf-8")
    schemes = re.findall(r":root \{\n(.*?)\n *\}", css, re.DOTALL)[:2]
    pairs = [*itertools.product(("ink", "soft", "link"), ("paper", "ground", "tint"))]
    pairs += itertools.product(("hybrid", "control", "harm", "right", "wrong"), ["paper"])
    for scheme in schemes:
        colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", scheme))
        for pair in pairs:
            light, dark = sorted((luminance(colours[name]) for name in pair), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, pair  # WCAG AA
    assert len(schemes) == 2


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([10, 50, 90], [10, 50, 90]),
        ([10, 12, 13, 90], [10, 24, 38, 90]),
        ([10, 80, 95, 99], [10, 72, 86, 100]),
        ([], []),
    ],
)
def test_names_in_the_margin_do_not_overlap(places: list[float], expected: list[float]) -> None:
    assert spread(places, 14, 100) == expected


def test_the_gap_axis_is_limited(tmp_path: Path) -> None:
    for arm, scores in (("base", [0, *BASE[1:]]), ("hybrid", [1] * 100), ("thinking", BASE)):
        write_run(tmp_path, arm, {"toy": samples(scores)})
    (task,) = compare(read(tmp_path))
    hybrid = task.arm("hybrid")
    assert hybrid.gap.recovered == 71
    axis = gap_axis([hybrid])
    assert (axis.ticks[0], axis.ticks[-1]) == (0, 250)
    assert 'x="100.00%"' in gap_row(hybrid, axis)
    assert gap_axis([]).ticks[0] == 0 and gap_axis([]).ticks[-1] == 100
