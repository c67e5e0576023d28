import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest

from lm_eval_hybrid.report import charts
from lm_eval_hybrid.report.findings_page import PARTS, figure, render, write
from tests.report.pages import HOSTILE, Element, findings, made_up, parse

SECTIONS = {
    "map": "points",
    "transitions": "transitions",
    "sweep": "sweep",
    "curves": "curves",
    "cosines": "cosines",
    "calibration": "calibration",
    "judge": "grades",
}


def page(fields: dict[str, Any]) -> Element:
    return parse(render(findings(fields)))


def shade(cell: Element) -> int:
    """The shade of a heat map's cell, from -20 to 20."""
    strength, *others = (cell.attributes["class"] or "").split()
    return int(strength[1:]) * (-1 if "below" in others else 1)


@pytest.fixture
def fields() -> dict[str, Any]:
    return made_up()


def test_the_header_names_bundle_models_and_data(fields: dict) -> None:
    header = page(fields).one("header")
    assert header.one("h1").text == "Behaviors of tiny@1.0.0"
    assert "into 3 behaviors" in header.text
    assert [item.text for item in header.one("dl").all("dd")] == [
        "org/base",
        "org/thinking",
        "3 traces",
        "lm-eval-hybrid 0.1.0, seed 5",
    ]
    figures = [item.text for item in header.one("ul", class_="figures").all("li")]
    assert figures[0] == "83.1% hit rate with the bias and the behaviors' vectors"
    assert figures[1].startswith("6.1% of held-out tokens are gates")
    assert figures[2] == "1.235 some loss"


def test_the_table_of_behaviors(fields: dict) -> None:
    table = page(fields).one("table", class_="taxonomy")
    rows = [[cell.text for cell in row.inside] for row in table.one("tbody").all("tr")]
    assert [row[:5] for row in rows] == [
        ["1", "Title 0Description 0.", "16.7%", "1,000", "\N{MINUS SIGN}1.0"],
        ["2", "Title 1Description 1.", "33.3%", "1,001", "\N{EN DASH}"],
        ["3", "Title 2Description 2.", "50.0%", "1,002", "+1.0"],
    ]
    second = table.one("tbody").all("tr")[1].one("details")
    assert [item.text for item in second.all("li")] == ["Sentence 1-0", "Sentence 1-1", "Sentence 1-2"]
    bars = [row.one("rect").attributes["width"] for row in table.one("tbody").all("tr")]
    assert bars == ["16.67%", "33.33%", "50.00%"]


def test_marks_of_a_behavior_are_in_the_order_of_its_list_of_sentences(fields: dict) -> None:
    section = page(fields).one("section", id="map")
    for i in range(3):
        (path,) = section.one("svg", class_="map").all("path", data_b=str(i))
        assert (path.attributes["d"] or "").count("M") == 10
        texts = [item.text for item in section.one("ol", data_b=str(i)).all("li")]
        assert texts == [point["text"] for point in fields["points"] if point["behavior"] == i]
    assert [button.text for button in section.one("ul", class_="legend").all("button")] == [
        f"Title {i} 10" for i in range(3)
    ]


def test_the_map_keeps_directions_and_proportions(fields: dict) -> None:
    corners = [(0, 0), (2, 0), (0, 1)]
    fields["points"] = [{"x": x, "y": y, "behavior": i, "text": ""} for i, (x, y) in enumerate(corners)]
    paths = page(fields).one("svg", class_="map").all("path")
    at = {
        path.attributes["data-b"]: tuple(map(float, (path.attributes["d"] or "")[1:].split("m")[0].split()))
        for path in paths
    }
    assert at["1"][0] > at["0"][0] and at["1"][1] == at["0"][1]
    assert at["2"][1] < at["0"][1] and at["2"][0] == at["0"][0]
    assert at["1"][0] - at["0"][0] == pytest.approx(2 * (at["0"][1] - at["2"][1]), abs=0.2)


def test_transitions_are_shown_as_counts_and_as_shares_of_their_row(fields: dict) -> None:
    section = page(fields).one("section", id="transitions")
    assert [row[1:] for row in section.one("details").rows()] == [["0", "1", "2"], ["3", "4", "5"], ["6", "7", "8"]]
    rows = section.one("table", class_="heat share").one("tbody").all("tr")
    assert [cell.text for cell in rows[1].all("td")] == ["25", "33", "42"]
    assert rows[1].all("td")[1].attributes["title"] == "Title 1 → Title 1: 4 of 12 (33.3%)"
    # The darkest cell is the highest share, 2 of 3 in the first row.
    assert [shade(cell) for row in rows[:2] for cell in row.all("td")] == pytest.approx(
        [0, 10, 20, 7.5, 10, 12.5], abs=0.5
    )


def test_the_sweep_shows_all_figures_and_marks_the_chosen_one(fields: dict) -> None:
    section = page(fields).one("section", id="sweep")
    rows = section.rows()
    assert len(rows) == len(fields["sweep"])
    for row, want in zip(rows, fields["sweep"], strict=True):
        chosen = (want["layer"], want["method"], want["size"]) == (7, "sae", 10)
        values = [want[part] for part in ("score", *PARTS)]
        assert row[:3] == [str(want["layer"]), want["method"] + (" chosen" if chosen else ""), str(want["size"])]
        assert row[3:] == [
            "\N{EN DASH}" if value is None else f"{value:.3f}".replace("-", "\N{MINUS SIGN}") for value in values
        ]
    assert [title.text for title in section.all("text", class_="title")][:2] == ["layer 3", "layer 7"]
    hints = [title.text for title in section.all("title")]
    assert "sae, layer 7, 10 categories: score 0.570" in hints
    # The chosen taxonomy is ringed in its own layer's panel, not in the other's.
    panels = {panel.one("text", class_="title").text: panel for panel in section.all("svg", role="img")}
    assert panels["layer 7"].all("circle", class_="ring") and not panels["layer 3"].all("circle", class_="ring")
    for panel in panels.values():
        for path in panel.all("path"):
            if "line" in (path.attributes["class"] or ""):
                xs = [float(place.split()[0]) for place in (path.attributes["d"] or "")[1:].split("L")]
                assert xs == sorted(xs)
    # A method without a measured part has no line for it.
    assert "gmm" not in panels["word information"].text and "sae, layer 7" in panels["word information"].text


def test_fits_of_a_kind_share_a_chart_and_their_last_values_are_in_the_table(fields: dict) -> None:
    section = page(fields).one("section", id="curves")
    titles = [title.text for title in section.all("text", class_="title")]
    assert titles == ["bias: loss", "vectors: loss", "vectors: mean norm of the vectors"]
    dash = "\N{EN DASH}"
    assert section.rows() == [
        ["bias", "99", "1.020", dash, dash, dash, dash],
        ["seed 0 vectors", "8", "1.919", "3.000", "1.000", "6", "8.000"],
        ["seed 1 vectors", "1,200", "1.250", dash, dash, dash, dash],
    ]


def test_a_long_curve_is_thinned_and_keeps_its_end(fields: dict) -> None:
    fields["curves"] = {"bias": [{"epoch": i, "loss": i % 7} for i in range(9_998)]}
    section = page(fields).one("section", id="curves")
    drawn = section.all("svg", role="img")[0].one("path", class_="line c0").attributes["d"] or ""
    assert 300 < len(drawn.split("L")) <= 402
    assert section.rows()[0][1] == "9,997"


def test_cosines_are_of_the_bias_and_all_behaviors(fields: dict) -> None:
    section = page(fields).one("section", id="cosines")
    twin = section.one("details").rows()
    assert [row[0] for row in twin] == ["bias", "1", "2", "3"]
    values = [[f"{value:.2f}".replace("-", "\N{MINUS SIGN}") for value in row] for row in fields["cosines"]]
    assert [row[1:] for row in twin] == values
    rows = section.one("table", class_="heat signed").one("tbody").all("tr")
    assert rows[0].all("td")[1].attributes["title"] == "bias and Title 0: cosine \N{MINUS SIGN}0.20"
    assert [shade(cell) for cell in rows[0].all("td")] == [20, -4, -4, -4]


def test_effects_are_bars_from_zero(fields: dict) -> None:
    section = page(fields).one("section", id="effects")
    first, unknown, last = (section.one("tr", data_b=str(i)) for i in range(3))
    assert "\N{MINUS SIGN}1.0, 1,000 gates" in first.text and "+1.0, 1,002 gates" in last.text
    assert "not measured" in unknown.text and not unknown.all("rect")
    left, right = (
        [float((row.one("rect").attributes[name] or "").rstrip("%")) for name in ("x", "width")]
        for row in (first, last)
    )
    assert left[0] + left[1] == pytest.approx(right[0]) and left[1] == right[1]


def test_calibration_has_a_row_for_each_policy(fields: dict) -> None:
    section = page(fields).one("section", id="calibration")
    gap = "87.5% [50.0, 125.0]"
    assert section.rows() == [
        ["guardrail chosen", "0.5, 1", "1, all", gap, "", "61.3%", "8.1%", "5.2%"],
        ["mlp", "from its network", "8", "undefined", "", "30.0%", "20.0%", "10.0%"],
    ]
    assert [row.attributes.get("class") for row in section.one("tbody").all("tr")] == ["chosen", None]


def test_the_judge_is_named_and_a_missing_grade_is_a_dash(fields: dict) -> None:
    section = page(fields).one("section", id="judge")
    assert section.one("p").text.startswith("a judge graded") and "1,234 of its replies" in section.text
    assert [row[1] for row in section.rows()] == ["0.750", "0.500", "\N{EN DASH}", "0.625"]


@pytest.mark.parametrize("section", [*SECTIONS, "effects"])
def test_a_section_without_data_is_left_out(fields: dict, section: str) -> None:
    everything = {element.attributes["id"] for element in page(fields).all("section")}
    assert everything == {"taxonomy", "effects", *SECTIONS}
    if section == "effects":
        for behavior in fields["behaviors"]:
            del behavior["effect"]
    else:
        del fields[SECTIONS[section]]
    left = page(fields)
    assert {element.attributes["id"] for element in left.all("section")} == everything - {section}
    links = [link.attributes["href"] for link in left.one("nav").all("a")]
    assert links == [f"#{element.attributes['id']}" for element in left.all("section")]


def test_figures_have_3_decimals_and_a_minus_sign_or_are_a_dash() -> None:
    assert [figure(value) for value in (0.12345, -0.125, None)] == ["0.123", "\N{MINUS SIGN}0.125", "\N{EN DASH}"]


def test_minimal_and_degenerate_findings_make_a_page(fields: dict) -> None:
    names = ("bundle", "base", "thinking", "data", "code_version", "seed")
    behavior = {"key": "only", "title": "Only", "description": "", "share": 1, "examples": [], "norm": 0}
    least = {name: fields[name] for name in names} | {"behaviors": [behavior]}
    found = page(least)
    assert [element.attributes["id"] for element in found.all("section")] == ["taxonomy"]
    assert "into 1 behavior." in found.text and "None" not in found.text and "nan" not in found.text
    one = {"x": 0, "y": 0, "behavior": 0, "text": "One."}
    flat = {"epoch": 0, "loss": 0.0, "held_out": 0.0, "norm": 0.0}
    row = {"layer": 0, "method": "sae", "size": 1, "score": 0.0}
    degenerate = {"points": [one, one], "transitions": [[0]], "cosines": [[0, 0], [0, 0]], "curves": {" ": [flat]}}
    found = page(least | degenerate | {"sweep": [row], "chosen": {"layer": 9, "size": 9}})
    sections = [element.attributes["id"] for element in found.all("section")]
    assert sections == ["taxonomy", "map", "sweep", "curves", "cosines"]  # nothing follows anything
    numbers = [value or "" for element in found.all() for value in element.attributes.values()]
    assert not [value for value in numbers if value in ("nan", "inf", "-inf") or "NaN" in value or "nan " in value]


@pytest.mark.parametrize("words", HOSTILE)
def test_text_of_models_and_data_is_escaped_everywhere(words: str) -> None:
    fields = made_up()
    plain = [element.name for element in page(fields).walk()]
    fields |= dict.fromkeys(("bundle", "base", "thinking", "data", "code_version"), words)
    fields["behaviors"][0] |= {"title": words, "description": words, "examples": [words] * 3}
    fields["points"][0]["text"] = words
    fields["grades"]["judge"] = words
    fields["holdout"] = {"hit_rate": 0.8314, "gate_rate": 0.0609, words: 1.23456}
    fields["curves"] = {{"seed 1 vectors": words}.get(name, name): curve for name, curve in fields["curves"].items()}
    for row in fields["sweep"]:
        row["method"] = row["method"] if row["method"] == "sae" else words
    found = page(fields)
    for where in ("header", "table", "ol", "title", "footer"):
        assert any(words in element.text for element in found.all(where)), where
    for where in ("sweep", "curves", "effects", "transitions", "judge"):
        assert words[:20] in found.one("section", id=where).text, where
    assert found.all("button")[0].attributes["data-title"] == words
    # No element, and no attribute of an element, is theirs.
    names = {element.name for element in found.walk()}
    assert names <= set(plain)
    assert len(found.all("script")) == len(found.all("style")) == 1
    assert not [key for element in found.walk() for key in element.attributes if key.startswith("on") or key == "style"]


def test_control_characters_are_replaced(fields: dict) -> None:
    fields["points"][0]["text"] = "a\x00b\x1b[31m\x85c\td\n"
    text = page(fields).one("ol", data_b="0").all("li")[0].text
    assert text == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}c\td\n"


def test_the_page_loads_nothing_and_allows_only_its_own_style_and_script(fields: dict) -> None:
    found = page(fields)
    for element in found.walk():
        assert "src" not in element.attributes
        assert (element.attributes.get("href") or "#").startswith("#")
    assert "url(" not in found.one("style").text and "@import" not in found.one("style").text
    policy = found.one("meta", http_equiv="Content-Security-Policy").attributes["content"] or ""
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for name in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(found.one(name).text.encode()).digest()).decode()
        assert rules[f"{name}-src"] == f"'sha256-{digest}'"


def test_the_same_findings_make_the_same_bytes(fields: dict, tmp_path: Path) -> None:
    found = findings(fields)
    write(found, tmp_path / "deep" / "page.html")
    assert (tmp_path / "deep" / "page.html").read_bytes() == render(found).encode()
    assert render(findings(made_up())) == render(found)


def test_a_page_of_many_behaviors_and_points_stays_small() -> None:
    many = findings(made_up(50, 4000, "long " * 38))
    assert len(render(many).encode()) < 5_000_000


def test_a_hundred_behaviors_look_different_from_one_another() -> None:
    looks = {(charts.look(i), charts.outline(i, 0.0, 0.0)) for i in range(100)}
    assert len(looks) == 100


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (3, 3, [1, 2, 3, 4, 5]),
        (0, 0, [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6]),
        (-0.31, 1.03, [-0.5, 0, 0.5, 1, 1.5]),
        (0, 49_000, [0, 10_000, 20_000, 30_000, 40_000, 50_000]),
    ],
)
def test_ticks_are_round_and_span_the_values(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks(low, high) == pytest.approx(expected)
