"""The documents' commands with models on a server run, on a real one."""

from pathlib import Path

import pytest

from tests.remote.conftest import LocalNdif
from tests.test_documents import RECIPE, REMOTE, run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("command", REMOTE)
def test_a_command_shown_runs(ndif: LocalNdif, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NDIF_HOST", ndif.host)
    (tmp_path / "my-recipe.yaml").write_text(RECIPE)
    assert run(command, tmp_path) or "discover" in command
