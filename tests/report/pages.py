"""Made-up findings, hostile texts, and a parser of pages."""

import itertools
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

from pydantic import TypeAdapter

from lm_eval_hybrid.report.findings import Findings

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Element:
    """An element with its attributes, children and text."""

    def __init__(self, name: str, attributes: dict[str, str | None]) -> None:
        self.name, self.attributes = name, attributes
        self.inside: list[Element] = []
        self.texts: list[str | Element] = []

    @property
    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.text for part in self.texts)

    def all(self, name: str | None = None, **attributes: str) -> "list[Element]":
        return [element for element in self.walk() if element.is_a(name, attributes)]

    def one(self, name: str | None = None, **attributes: str) -> "Element":
        (element,) = self.all(name, **attributes)
        return element

    def is_a(self, name: str | None, attributes: dict[str, str]) -> bool:
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return (name is None or self.name == name) and wanted.items() <= self.attributes.items()

    def walk(self) -> "Iterator[Element]":
        for element in self.inside:
            yield element
            yield from element.walk()

    def rows(self) -> list[list[str]]:
        """The texts of the cells of its only table's body."""
        return [[cell.text for cell in row.inside if cell.name in ("td", "th")] for row in self.one("tbody").all("tr")]


class Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("", {})]

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        element = Element(name, dict(attributes))
        self.open[-1].inside.append(element)
        self.open[-1].texts.append(element)
        if name not in VOID:
            self.open.append(element)

    def handle_endtag(self, name: str) -> None:
        assert self.open[-1].name == name, f"</{name}> ends <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].texts.append(data)


def parse(text: str) -> Element:
    parser = Parser()
    parser.feed(text)
    parser.close()
    assert len(parser.open) == 1, "an element has no end"
    return parser.open[0]


HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style></title></svg></ol>",
    "\"><img src=x onerror='alert(1)'>",
    "' onmouseover=alert(1) x='",
    '"onload="alert(1)"',
    "&lt;b&gt; &amp;#60;script&#62;",
    "<!-- <![CDATA[ ]]> -->",
    "{{ 7 * 7 }}{% raw %}",
    "line\u2028separators\u2029too",
    "\u202eturned \u0663 \U0001f600",
]


def made_up(behaviors: int = 3, points: int = 30, text: str = "Sentence") -> dict[str, Any]:
    """Findings with all their parts, as nested dictionaries; the numbers differ from one another."""
    n = behaviors
    sweep = [
        {
            **{"layer": layer, "method": method, "size": size, "score": 0.5 + layer / 100 - abs(size - 10) / 99},
            **{"stability": 0.9 - size / 77, "silhouette": -0.125, "confidence": 0.25, "explained": size / 60},
            "word_information": None if method == "gmm" else 0.375,
        }
        for layer, method, size in itertools.product((3, 7), ("gmm", "k-means", "sae"), (10, 20, 5))
    ]
    return {
        "bundle": "tiny@1.0.0",
        "base": "org/base",
        "thinking": "org/thinking",
        "data": "3 traces",
        "code_version": "0.1.0",
        "seed": 5,
        "behaviors": [
            {
                **{"key": f"key-{i}", "title": f"Title {i}", "description": f"Description {i}."},
                **{"share": (i + 1) / (n * (n + 1) / 2), "examples": [f"{text} {i}-{j}" for j in range(3)]},
                **{"norm": 1000.0 + i, "effect": None if i == 1 else (i - 1) / 100, "gates": 1000 + i},
            }
            for i in range(n)
        ],
        "points": [
            {"x": i * 7 % 31, "y": i * 11 % 29, "behavior": i % n, "text": f"{text} {i}"} for i in range(points)
        ],
        "transitions": [[i * n + j for j in range(n)] for i in range(n)],
        "sweep": sweep,
        "chosen": {"layer": 7, "size": 10},
        "curves": {
            "bias": [{"epoch": i, "loss": 3 - i / 50} for i in range(100)],
            "seed 0 vectors": [
                {"epoch": i, "loss": 2 - i / 99, "held_out": abs(i - 6) + 1, "norm": i} for i in range(9)
            ],
            "seed 1 vectors": [{"epoch": 1200, "loss": 1.25}],
        },
        "cosines": [[1 if i == j else round((i + j) / 222 - 0.2, 2) for j in range(n + 1)] for i in range(n + 1)],
        "grades": {"judge": "a judge", "consistency": 0.75, "completeness": 0.5, "score": 0.625, "unanswered": 1234},
        "calibration": [
            {
                **{"select": "guardrail", "coefficients": [0.5, 1.0], "windows": [1, 0], "gap": 0.875, "gap_low": 0.5},
                **{"gap_high": 1.25, "steered": 0.081, "changed": 0.052, "accuracy": 0.613, "chosen": True},
            },
            {"select": "mlp", "coefficients": [1], "windows": [8], "steered": 0.2, "changed": 0.1, "accuracy": 0.3},
        ],
        "holdout": {"hit_rate": 0.8314, "gate_rate": 0.0609, "some_loss": 1.23456},
    }


def findings(fields: dict[str, Any]) -> Findings:
    """The findings in nested dictionaries such as those of `made_up`."""
    return TypeAdapter(Findings).validate_python(fields)
