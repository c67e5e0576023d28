"""The published schema of `behavior.yaml`, made from the code: a JSON schema, and a page to read.

`python -m lm_eval_hybrid.bundles.schema FOLDER` writes behavior.schema.json and behavior-yaml.md there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lm_eval_hybrid.bundles.manifest import SCHEMA, Manifest

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The JSON schema of a manifest; only the code checks that the parts are consistent."""
    title = f"behavior.yaml, schema version {SCHEMA}"
    return {"$schema": _DIALECT, **Manifest.model_json_schema(), "title": title}


def page() -> str:
    """The schema as Markdown, a table for each part."""
    schema = json_schema()
    sections = [
        "# behavior.yaml",
        f"The manifest of a behavior bundle, schema version {SCHEMA}. Made from the code by `make docs`; "
        "`lm-eval-hybrid behaviors schema` prints it as JSON schema ([behavior.schema.json](behavior.schema.json)). "
        "Unknown keys, aliases, tags, duplicate keys and other schema versions are refused.",
        _table("The manifest", schema),
        *(_table(name, part) for name, part in schema["$defs"].items()),
    ]
    return "\n\n".join(sections) + "\n"


def _table(name: str, part: dict[str, Any]) -> str:
    rows = [f"## {name}", "", " ".join(part["description"].split()), "", "| key | type | what |", "| --- | --- | --- |"]
    for key, field in part["properties"].items():
        need = "" if key in part.get("required", ()) else f" Default: `{json.dumps(field.get('default'))}`."
        words = " ".join(field.get("description", "").split())
        rows.append(f"| `{key}` | {_type(field)} | {words}{need if 'default' in field else ''} |")
    return "\n".join(rows)


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    kind = field.get("type", "any")
    if kind == "array":
        return f"list of {_type(field['items'])}" if "items" in field else "list"
    if kind == "object":
        return f"mapping to {_type(field['additionalProperties'])}" if field.get("additionalProperties") else "mapping"
    return {"integer": "whole number", "string": "text", "null": "null"}.get(kind, kind)


def main(folder: Path) -> None:
    """Write both files into `folder`."""
    (folder / "behavior.schema.json").write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")
    (folder / "behavior-yaml.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
