from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lm_eval_hybrid.report.findings_page import write
from tests.report.browser import Browser
from tests.report.pages import findings, made_up

Place = Callable[[int, int], tuple[float, float]]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("browser")
    fields = made_up()
    fields["points"][4]["text"] = "<img src=x onerror=alert(1)> & more"
    fields["behaviors"][1]["title"] = "<b>Bold</b>"
    write(findings(fields), folder / "page.html")
    opened = Browser(folder / "profile", folder / "page.html")
    yield opened
    opened.close()


@pytest.fixture
def at_map(browser: Browser) -> Place:
    """The place in the window of a behavior's k-th mark, with nothing picked and the map in view."""
    browser.press("Escape")
    browser.get(
        "document.activeElement.blur(); document.querySelector('svg.map').scrollIntoView({behavior: 'instant'})"
    )

    def place(behavior: int, index: int) -> tuple[float, float]:
        expression = f"""(() => {{
            const map = document.querySelector('svg.map'), box = map.getBoundingClientRect();
            const scale = box.width / map.viewBox.baseVal.width;
            const marks = map.querySelector('path[data-b="{behavior}"]').getAttribute('d').split('M').slice(1);
            const [x, y] = marks[{index}].split('m')[0].split(' ').map(Number);
            return [box.left + x * scale, box.top + y * scale];
        }})()"""
        x, y = browser.get(expression)
        return x, y

    return place


TIP = "[...document.querySelectorAll('.tip > *')].map((part) => part.textContent)"


def test_pointing_at_a_mark_shows_its_sentence(browser: Browser, at_map: Place) -> None:
    assert browser.get("document.querySelector('.tip').hidden") is True
    browser.move(*at_map(1, 1))  # the sentence of point 4
    assert browser.get(TIP) == ["<b>Bold</b>", "<img src=x onerror=alert(1)> & more"]
    assert browser.get("document.querySelector('.tip').hidden") is False
    browser.move(*at_map(2, 3))
    assert browser.get(TIP) == ["Title 2", "Sentence 11"]
    browser.move(2, 2)
    assert browser.get("document.querySelector('.tip').hidden") is True


def test_picking_a_behavior_fades_the_others_everywhere(browser: Browser, at_map: Place) -> None:
    faded = "[...document.querySelectorAll('[data-b].faded')].map((part) => part.dataset.b)"
    browser.get("document.querySelectorAll('ul.legend button')[1].click()")
    assert set(browser.get(faded)) == {"0", "2"}
    assert browser.get("document.querySelectorAll('section:has([data-b=\"1\"])').length") == 5
    assert browser.get("document.querySelectorAll('[data-b=\"1\"].faded').length") == 0
    pressed = "[...document.querySelectorAll('[data-pick=\"1\"]')].map((pick) => pick.getAttribute('aria-pressed'))"
    assert browser.get(pressed) == ["true", "true"]
    assert browser.get("document.querySelector('.showing span').textContent") == "<b>Bold</b>"
    browser.move(*at_map(2, 3))  # is faded, so it is not pointed at
    assert browser.get("document.querySelector('.tip').hidden") is True
    browser.move(*at_map(1, 3))
    assert browser.get(TIP) == ["<b>Bold</b>", "Sentence 10"]
    browser.press("Escape")
    assert browser.get(faded) == [] and browser.get("document.querySelector('.showing').hidden") is True


def test_arrow_keys_move_between_marks(browser: Browser, at_map: Place) -> None:
    browser.get("document.querySelector('svg.map').focus()")
    here = "Number(document.querySelector('svg.map .here').getAttribute('cx'))"
    browser.press("ArrowRight")
    first = browser.get(here)
    assert browser.get("document.querySelector('.tip').hidden") is False
    browser.press("ArrowRight")
    assert browser.get(here) > first
    browser.press("ArrowLeft")
    browser.press("ArrowLeft")
    assert browser.get(here) < browser.get("document.querySelector('svg.map').viewBox.baseVal.width")


def test_the_browser_logs_no_errors(browser: Browser) -> None:
    assert browser.get("document.querySelectorAll('img, iframe').length") == 0
    assert browser.get("getComputedStyle(document.querySelector('.c1')).fill") != "rgb(0, 0, 0)"
    assert browser.get("document.documentElement.scrollWidth <= window.innerWidth") is True
    assert browser.problems == []


def test_a_page_of_many_points_opens_within_two_seconds(tmp_path: Path) -> None:
    write(findings(made_up(50, 4000, "long " * 38)), tmp_path / "page.html")
    times = []
    for i in range(3):  # others may be at work on the same machine
        opened = Browser(tmp_path / f"profile{i}", tmp_path / "page.html")
        try:
            assert opened.get("document.querySelectorAll('ol.said > li').length") == 4000
            times.append(opened.get("performance.getEntriesByType('navigation')[0].loadEventEnd"))
        finally:
            opened.close()
        if times[-1] < 2000:
            return
    pytest.fail(f"the page must open within 2,000 ms; it took {times}")
