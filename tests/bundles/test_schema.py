import json
from pathlib import Path

from lm_eval_hybrid.bundles.schema import json_schema, main, page

DOCS = Path(__file__).parents[2] / "docs"


def test_the_published_schema_is_up_to_date(tmp_path: Path) -> None:
    main(tmp_path)
    for name in ("behavior-yaml.md", "behavior.schema.json"):
        assert (DOCS / name).read_text() == (tmp_path / name).read_text(), "run `make docs`"


def test_every_field_is_explained() -> None:
    schema = json_schema()
    for part in (schema, *schema["$defs"].values()):
        assert part["additionalProperties"] is False
        for name, field in part["properties"].items():
            words = field.get("description") or "$ref" in field or "$ref" in field.get("items", {})
            assert words, name


def test_the_page_has_a_table_for_each_part() -> None:
    shown = page()
    assert all(f"\n## {name}\n" in shown for name in json_schema()["$defs"])
    assert "| `layer` | whole number |" in shown
    assert "[Behavior](#behavior)" in shown
    assert json.dumps("disagreement") in shown
