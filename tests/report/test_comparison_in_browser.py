import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lm_eval_hybrid.report.comparison_page import write
from lm_eval_hybrid.results.comparison import compare
from lm_eval_hybrid.results.outputs import read
from tests.report.browser import Browser
from tests.report.many import write_many
from tests.results.outputs import Token, samples
from tests.results.outputs import write as write_run

HOSTILE = "</script><img src=x onerror='alert(1)'> <b>]]>\u2028\x00&amp;"
SHORT: tuple[Token, ...] = ((" 4", "compute", True), (" apples", None, False), (".", None, False))
MARKED: tuple[Token, ...] = (
    (" So", "compute", True),
    (f" {HOSTILE}", None, False),
    ("\n", "check", False),
    (" it", "check", True),
    (" ends", None, False),
)
# base, hybrid, thinking: documents 0 to 5.
RIGHT = {"base": [1, 0, 0, 1, 0, 0], "hybrid": [1, 1, 0, 0, 1, 0], "thinking": [1, 1, 0, 1, 0, 1], "takeover": [1] * 6}


def opened(folder: Path, source: Path) -> Browser:
    runs = read(source)
    write(runs, compare(runs), 0, folder / "page.html")
    browser = Browser(folder / "profile", folder / "page.html")
    browser.call("Emulation.setFocusEmulationEnabled", enabled=True)
    browser.wait("performance.getEntriesByName('listed').length > 0")
    return browser


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("browser")
    for arm, scores in RIGHT.items():
        made = samples(scores, question="How many?")
        made[2]["doc"]["question"] = f"Which {HOSTILE} is it?"
        made[4]["target"] = HOSTILE
        tokens = [MARKED if arm == "hybrid" and i % 2 else SHORT for i in range(6)]
        if arm != "hybrid":
            tokens = [tuple((text, None, False) for text, _, _ in answer) for answer in tokens]
        write_run(folder / "runs", arm, {"toy": made, "other": samples([1, 0])}, tokens=tokens)
    (cut,) = [p for p in (folder / "runs").rglob("tokens_toy_*.jsonl") if '"arm": "hybrid"' in p.read_text()]
    lines = cut.read_text().removesuffix("\n").split("\n")
    cut.write_text("\n".join([lines[0].replace('"finish": "stop"', '"finish": "length"'), *lines[1:]]) + "\n")
    browser = opened(folder, folder / "runs")
    yield browser
    browser.close()


@pytest.fixture
def browser(shared: Browser) -> Browser:
    """The page in the state in which it opens."""
    go(shared, "")
    shared.get("document.activeElement.blur(); window.scrollTo(0, 0)")
    go(shared, "#toy")
    return shared


def go(browser: Browser, address: str) -> None:
    browser.get(f"location.hash = {json.dumps(address)}")
    if "/" in address:
        place, number = address.lstrip("#").split("?")[0].split("/")
        browser.wait(f"document.querySelector('#document').dataset.drawn === '{place}, document {number}'")
    else:
        browser.wait("document.querySelector('#document').hidden")


def texts(browser: Browser, query: str) -> list[str]:
    return browser.get(f"[...document.querySelectorAll({json.dumps(query)})].map((part) => part.textContent)")


def listed(browser: Browser) -> list[str]:
    return texts(browser, ".documents .id")


def click(browser: Browser, query: str, index: int = 0) -> None:
    browser.get(f"document.querySelectorAll({json.dumps(query)})[{index}].click()")


def test_documents_are_listed_with_their_verdicts(browser: Browser) -> None:
    assert listed(browser) == ["0", "1", "2", "3", "4", "5"]
    assert texts(browser, ".documents li")[1] == "1How many? 1✗ base wrong✓ hybrid right✓ thinking right3 of 5 steered"
    assert texts(browser, ".counted p") == ["6 documents"]
    assert texts(browser, ".matrix legend") == ["base and hybrid", "hybrid and thinking"]
    assert texts(browser, ".matrix button") == [
        *("1both right", "2both wrong", "2only hybrid right", "1only base right"),
        *("2both right", "1both wrong", "2only thinking right", "1only hybrid right"),
    ]


def test_outcomes_filter_the_list_and_are_in_the_address(browser: Browser) -> None:
    click(browser, ".matrix button", 2)  # only the hybrid right, of base and hybrid
    assert listed(browser) == ["1", "4"] and texts(browser, ".counted p") == ["2 of 6 documents"]
    assert browser.get("location.hash") == "#toy?right=hybrid&wrong=base"
    assert browser.get("document.querySelectorAll('.matrix button')[2].getAttribute('aria-pressed')") == "true"
    click(browser, ".matrix button", 7)  # and of hybrid and thinking
    assert listed(browser) == ["4"]
    click(browser, ".matrix button", 2)
    assert browser.get("location.hash") == "#toy?wrong=thinking"
    click(browser, ".clear")
    assert len(listed(browser)) == 6 and browser.get("location.hash") == "#toy"
    assert browser.get("document.querySelector('.clear').hidden") is True


def test_words_behaviors_and_endings_filter_the_list(browser: Browser) -> None:
    fill = (
        "(() => { const part = document.querySelector('%s'); part.value = %s; part.dispatchEvent(new Event('%s')); })()"
    )
    browser.get(fill % ("input[name=q]", json.dumps("IMG src=x"), "input"))
    assert listed(browser) == ["2"]
    browser.get(fill % ("input[name=q]", "''", "input"))
    assert texts(browser, "select[name=behavior] option") == ["any or no behavior", "1 check (3)", "2 compute (6)"]
    browser.get(fill % ("select[name=behavior]", "'0'", "change"))
    assert listed(browser) == ["1", "3", "5"] and browser.get("location.hash") == "#toy?behavior=check"
    browser.get(fill % ("select[name=behavior]", "'-1'", "change"))
    assert texts(browser, "select[name=ending] option") == ["any", "hybrid cut at the token limit (1)"]
    browser.get(fill % ("select[name=ending]", "'hybrid.truncated'", "change"))
    assert listed(browser) == ["0"] and browser.get("location.hash") == "#toy?ending=hybrid.truncated"


def test_an_address_opens_a_document_of_the_filtered_list(browser: Browser) -> None:
    go(browser, "#toy/4?wrong=base&right=hybrid")
    assert browser.get("document.querySelector('main').hidden && document.querySelector('header').hidden") is True
    assert texts(browser, "#opened") == ["toy, document 4"] == [browser.get("document.title")]
    assert browser.get("document.activeElement.id") == "opened"
    assert texts(browser, ".where") == ["2 of 2 documents"]
    assert texts(browser, ".asked .text")[:2] == ["How many? 4", HOSTILE.replace("\x00", "\ufffd")]
    assert texts(browser, ".answer h3") == ["base✗ wrong", "hybrid✓ right", "thinking✗ wrong"]
    assert texts(browser, ".answer .facts") == ["3 tokens", "3 tokens · 1 steered", "3 tokens"]
    assert texts(browser, ".answer > .text") == ["4 apples."] * 3
    assert texts(browser, ".answer .read") == ["Read answer: 4"] * 3
    assert browser.get("document.querySelector('.next').disabled") is True
    click(browser, ".back")
    browser.wait("document.querySelector('#document').hidden")
    assert listed(browser) == ["1", "4"] and browser.get("location.hash") == "#toy?right=hybrid&wrong=base"


def test_steered_tokens_are_marked_by_colour_number_and_line(browser: Browser) -> None:
    go(browser, "#toy/1")
    marks = browser.get("""[...document.querySelectorAll('mark')].map((mark) => {
        const style = getComputedStyle(mark);
        return [mark.textContent, mark.dataset.n, style.textDecorationStyle, style.backgroundColor, mark.dataset.glyph];
    })""")
    assert [mark[:3] for mark in marks] == [["So", "2", "solid"], ["\n", "1", "dotted"], ["it", "1", "solid"]]
    assert marks[0][3] != marks[1][3] == marks[2][3] != "rgba(0, 0, 0, 0)"
    assert [mark[4] for mark in marks] == [None, "↵", None]
    assert texts(browser, ".legend li") == ["1 check 2", "2 compute 1"]
    assert texts(browser, ".answer.hybrid > .text")[0] == f"So {HOSTILE}\n it ends".replace("\x00", "\ufffd")
    tag = browser.get("getComputedStyle(document.querySelector('.legend .tag')).backgroundColor")
    assert tag == marks[1][3]


TIP = ["base's choice", "token 11", "60.7%", "thinking model's choice", "␣So", "88.2%"]


def test_pointing_at_a_mark_shows_a_tip(browser: Browser) -> None:
    go(browser, "#toy/1")
    assert browser.get("document.querySelector('#tip').hidden") is True
    x, y = browser.get(
        "(() => { const b = document.querySelector('mark').getBoundingClientRect(); return [b.x + 4, b.y + 5]; })()"
    )
    browser.move(x, y)
    browser.wait("!document.querySelector('#tip').hidden")
    assert texts(browser, "#tip b") == ["2 compute"] and texts(browser, "#tip div") == ["Steered and changed."]
    cells = texts(browser, "#tip th, #tip td")
    assert cells[:6] == TIP and cells[6:9] == ["emitted", "␣So", "77.9% by thinking"]
    assert cells[9:] == ["coefficient", "1.00", "", "window", "all positions", ""]
    assert browser.get("document.querySelector('mark').getAttribute('aria-describedby')") == "tip"
    browser.move(2, 2)
    browser.wait("document.querySelector('#tip').hidden")


def test_keys_move_between_marks_and_show_their_tips(browser: Browser) -> None:
    go(browser, "#toy/1")
    assert browser.get("[...document.querySelectorAll('mark')].map((mark) => mark.tabIndex)") == [0, -1, -1]
    browser.get("document.querySelector('mark').focus()")
    assert texts(browser, "#tip b") == ["2 compute"]
    browser.press("ArrowRight")
    assert texts(browser, "#tip div") == ["Steered, but not changed: it is the base's own choice."]
    assert "↵" in texts(browser, "#tip code")
    browser.press("End")
    assert browser.get("document.activeElement.textContent") == "it"
    assert browser.get("[...document.querySelectorAll('mark')].map((mark) => mark.tabIndex)") == [-1, -1, 0]
    browser.press("Escape")  # first of the tip, then of the document
    assert browser.get("document.querySelector('#tip').hidden && !document.querySelector('#document').hidden") is True
    browser.press("Escape")
    browser.wait("document.querySelector('#document').hidden")


def test_keys_move_between_documents_and_back_to_the_list(browser: Browser) -> None:
    go(browser, "#toy/1?right=hybrid")
    for key, number in (("j", 4), ("k", 1), ("ArrowRight", 4), ("j", 4), ("ArrowLeft", 1), ("k", 0), ("k", 0)):
        browser.press(key)
        browser.wait(f"document.querySelector('#document').dataset.drawn === 'toy, document {number}'")
        assert browser.get("location.hash") == f"#toy/{number}?right=hybrid"
    browser.press("Escape")
    browser.wait("document.querySelector('#document').hidden")
    assert browser.get("document.activeElement.dataset.document") == "0"
    assert browser.get("document.title").startswith("Comparison of arms")
    browser.press("j")
    assert browser.get("document.activeElement.dataset.document") == "1"
    browser.get("history.back()")
    browser.wait("!document.querySelector('#document').hidden")


def test_other_arms_can_be_chosen(browser: Browser) -> None:
    go(browser, "#toy/1")
    assert texts(browser, ".choose button") == ["base", "hybrid", "thinking", "takeover"]
    click(browser, ".choose button", 3)
    browser.wait("document.querySelectorAll('.answer').length === 4")
    click(browser, ".choose button", 0)
    browser.wait("document.querySelectorAll('.answer').length === 3")
    assert texts(browser, ".answer h3") == ["hybrid✓ right", "thinking✓ right", "takeover✓ right"]
    assert browser.get("location.hash") == "#toy/1?arm=hybrid&arm=thinking&arm=takeover"
    assert browser.get("document.activeElement.textContent") == "base"


def test_another_task_can_be_chosen(browser: Browser) -> None:
    go(browser, "#toy?wrong=base")
    click(browser, ".tasks button", 0)
    assert texts(browser, ".tasks button[aria-pressed=true]") == ["other"]
    assert listed(browser) == ["0", "1"] and browser.get("location.hash") == "#other"
    go(browser, "#other/1")
    assert texts(browser, "#opened") == ["other, document 1"]


@pytest.mark.parametrize("address", ["#nothing/1", "#toy/99", "#%E0%A4%A", "#toy?right=nobody&behavior=no&ending=x.y"])
def test_unknown_addresses_show_the_list(browser: Browser, address: str) -> None:
    go(browser, "#toy/1")
    browser.get(f"location.hash = {json.dumps(address)}")
    browser.wait("document.querySelector('#document').hidden")
    assert len(listed(browser)) == 6


def test_a_link_to_a_section_closes_the_document(browser: Browser) -> None:
    go(browser, "#toy/1")
    go(browser, "#provenance")
    assert browser.get("document.querySelector('main').hidden") is False
    top = browser.get("document.querySelector('#provenance').getBoundingClientRect().top")
    assert abs(top) < browser.get("innerHeight")


def test_dark_and_narrow_screens_and_paper(browser: Browser) -> None:
    go(browser, "#toy/1")
    colours = "['body', 'mark'].map((part) => getComputedStyle(document.querySelector(part)).backgroundColor)"
    by_day = browser.get(colours)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    by_night = browser.get(colours)
    assert by_day[0] == "rgb(255, 255, 255)" and by_night[0] == "rgb(21, 24, 29)" and by_day[1] != by_night[1]
    browser.call("Emulation.setEmulatedMedia", media="print")  # still in the dark theme
    assert browser.get(colours) == by_day
    assert browser.get("getComputedStyle(document.querySelector('.choose')).display") == "none"
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
    try:
        browser.call("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=False)
        assert browser.get("document.documentElement.scrollWidth <= window.innerWidth") is True
        lefts = browser.get(
            "[...document.querySelectorAll('.answer')].map((answer) => answer.getBoundingClientRect().left)"
        )
        assert len(set(lefts)) == 1  # below one another
        go(browser, "#toy")
        assert browser.get("document.documentElement.scrollWidth <= window.innerWidth") is True
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")
    printed = base64.b64decode(browser.call("Page.printToPDF")["data"])
    assert printed.startswith(b"%PDF")


def test_the_browser_logs_no_errors(browser: Browser) -> None:
    for number in range(6):
        go(browser, f"#toy/{number}")
    assert browser.get("document.querySelectorAll('img, iframe, script[src], b > *').length") == 0
    assert browser.problems == []


@pytest.fixture(scope="module")
def gaps() -> str:
    """A script that measures the gaps between two moments at which the page responds."""
    return """window.gaps = []; (() => { let last = performance.now();
        const beat = () => { const now = performance.now(); gaps.push(now - last); last = now; setTimeout(beat); };
        beat(); })()"""


def test_a_page_of_1319_documents_is_small_and_opens_fast(tmp_path: Path) -> None:
    write_many(tmp_path / "runs")
    browser = opened(tmp_path, tmp_path / "runs")
    try:
        size = (tmp_path / "page.html").stat().st_size
        listed_at = browser.get("performance.getEntriesByName('listed')[0].startTime")
        start = browser.get("performance.now()")
        go(browser, "#many/1318")
        took = browser.get("performance.now()") - start
        print(f"1,319 documents: {size / 1e6:.1f} MB, listed after {listed_at:.0f} ms, one opened in {took:.0f} ms")
        assert size < 25_000_000 and listed_at < 10_000 and took < 5_000  # machines differ
        assert texts(browser, ".counted p") == ["1,319 documents"]
        assert len(listed(browser)) == 200  # the others come as they are scrolled to
        go(browser, "#many")
        browser.get("document.querySelector('.more').scrollIntoView()")
        browser.wait("document.querySelectorAll('.documents li').length >= 400")
        assert browser.problems == []
    finally:
        browser.close()


def test_an_answer_of_50000_tokens_opens(tmp_path: Path, gaps: str) -> None:
    write_many(tmp_path / "runs", documents=1, tokens=50_000, steered=0.3)
    browser = opened(tmp_path, tmp_path / "runs")
    try:
        browser.get(gaps)
        start = browser.get("performance.now()")
        go(browser, "#many/0")
        took, longest = browser.get("performance.now()") - start, browser.get("Math.max(...gaps)")
        print(f"50,000 tokens: drawn in {took:.0f} ms, the page did not answer for {longest:.0f} ms at most")
        assert browser.get("document.querySelectorAll('mark').length") > 14_000
        whole: list[dict[str, Any]] = [
            json.loads(line) for line in next((tmp_path / "runs").rglob("tokens_*.jsonl")).read_text().splitlines()
        ]
        assert texts(browser, ".answer.hybrid > .text")[0] == whole[0]["text"].lstrip()
        assert took < 15_000 and longest < 3_000
    finally:
        browser.close()
