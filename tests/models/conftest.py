"""Our own tasks only: reading the harness's thousands takes seconds, each time."""

from typing import Any

import lm_eval.tasks
import pytest


@pytest.fixture(autouse=True)
def _own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnTasks(lm_eval.tasks.TaskManager):
        # `autoload` gives whoever reads the stock tasks ours as well: these are what is read.
        def __init__(self, include_path: Any = None, include_defaults: bool = True, **given: Any) -> None:
            super().__init__(include_path=include_path, include_defaults=False, **given)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", OwnTasks)
