import json
from pathlib import Path

from lm_eval_hybrid.report.findings import write
from tests.report.pages import findings, made_up


def test_findings_are_written_as_json_with_every_field(tmp_path: Path) -> None:
    fields = made_up()
    write(findings(made_up()), tmp_path / "a.json")
    write(findings(made_up()), tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    written = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert written["schema_version"] == 1 and written["transitions"] == fields["transitions"]
    assert written["behaviors"][2] == fields["behaviors"][2]
    assert written["calibration"][1]["gap"] is None
