"""Lets TaskManager read only our tasks: reading the harness's thousands takes seconds, each time."""

from typing import Any

import lm_eval.tasks
import pytest


@pytest.fixture(autouse=True)
def _own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnTasks(lm_eval.tasks.TaskManager):
        # `autoload` adds our folder only for a manager that would read the harness's tasks.
        def __init__(self, include_path: Any = None, include_defaults: bool = True, **given: Any) -> None:
            super().__init__(include_path=include_path, include_defaults=False, **given)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", OwnTasks)
