"""Registers the `hybrid` model and our tasks with the harness, without a flag.

Released harnesses (0.4.12, 0.4.13) have no plug-ins. So the wheel ships two start-up files, lm_eval_hybrid.pth (Python
up to 3.14) and lm_eval_hybrid.start (3.15 on, PEP 829), which call `install()` whenever Python starts. It only puts a
finder in front of `sys.meta_path`; the work is done right after `lm_eval.models` or `lm_eval.tasks` is imported. Not
earlier: the harness fills its model registry only while that is empty, so a model registered first would hide its own.

Every start of Python imports this module. So it imports only modules that are loaded by then; `typing` is not.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

OFF_SWITCH = "LM_EVAL_HYBRID_AUTOLOAD"
MODEL = "lm_eval_hybrid.harness.hybrid_lm:HybridLM"


def install() -> None:
    """Arrange that `register` happens when the harness is imported, unless LM_EVAL_HYBRID_AUTOLOAD=0.

    Neither this nor the registration ever raises: a failure is logged as a warning by the logger `lm_eval_hybrid`.
    """
    if os.environ.get(OFF_SWITCH) == "0" or any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())


def register() -> None:
    """Register model `hybrid` and our tasks with the harness now. Idempotent; imports the harness, not torch.

    Raises:
        ImportError: the harness is not installed.
    """
    import lm_eval.models
    import lm_eval.tasks

    register_model(lm_eval.models)
    register_tasks(lm_eval.tasks)


def register_model(models: "ModuleType") -> None:
    """Add `hybrid` to the model registry as a placeholder, as `lm_eval.models` adds its own models."""
    from lm_eval.api.registry import model_registry

    if "hybrid" not in model_registry:
        model_registry.register("hybrid", target=MODEL)


def register_tasks(tasks: "ModuleType") -> None:
    """Make every `TaskManager` that reads the harness's tasks read ours next, before the user's include path."""
    manager = tasks.TaskManager
    if not hasattr(manager.__init__, "reads_hybrid_tasks"):
        manager.__init__ = _with_our_tasks(manager.__init__)


def _with_our_tasks(construct: "Callable[..., None]") -> "Callable[..., None]":
    import functools
    import inspect

    from lm_eval_hybrid.common.paths import tasks_dir

    signature = inspect.signature(construct)
    if missing := {"include_path", "include_defaults"} - signature.parameters.keys():
        raise TypeError(f"this harness's TaskManager has no {' or '.join(sorted(missing))}")
    ours = tasks_dir()

    @functools.wraps(construct)
    def __init__(self: "Any", *args: object, **kwargs: object) -> None:
        call = signature.bind(self, *args, **kwargs)
        call.apply_defaults()
        given = call.arguments["include_path"]
        if call.arguments["include_defaults"]:
            # Later folders take precedence: the user's over ours.
            users = list(given) if isinstance(given, list | tuple) else [given] if given else []
            call.arguments["include_path"] = [ours, *users]
        construct(*call.args, **call.kwargs)
        self.include_path = given

    __init__.__dict__["reads_hybrid_tasks"] = True
    return __init__


_STEPS = {"lm_eval.models": register_model, "lm_eval.tasks": register_tasks}


class _Finder:
    """Finds a module of `_STEPS` through the finders behind this one, and runs its step once it is loaded."""

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if name not in _STEPS:
            return None
        try:
            for finder in sys.meta_path:
                find = None if isinstance(finder, _Finder) else getattr(finder, "find_spec", None)
                spec = find(name, path, target) if find else None
                if spec is not None:
                    spec.loader = spec.loader and _Loader(spec.loader)
                    return spec
        except Exception as error:
            _warn(name, error)
        return None


class _Loader:
    """Restores the module's own loader, lets it load the module, and runs the module's step."""

    def __init__(self, loader: "Loader") -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def exec_module(self, module: "ModuleType") -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        try:
            _STEPS[module.__name__](module)
        except Exception as error:
            _warn(module.__name__, error)


def _warn(name: str, error: Exception) -> None:
    import logging

    logging.getLogger("lm_eval_hybrid").warning("hybrid could not be added to %s: %r", name, error)
