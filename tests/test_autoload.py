"""The start-up hook: what it registers, when, what it imports, and that its own faults never reach the user.

Each test runs in an interpreter of its own, where an installed hook is switched off.
"""

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOOK = (ROOT / "lm_eval_hybrid.pth").read_text()
INSTALL = "from lm_eval_hybrid import autoload; autoload.install()\n"


def run(code: str, autoload: str = "1", flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run `code` in an interpreter without a hook other than the one that `code` installs."""
    # The off switch is set while Python starts, and gets the value of `autoload` then.
    prelude = f"import os; os.environ['LM_EVAL_HYBRID_AUTOLOAD'] = {autoload!r}\n"
    environment = {**os.environ, "LM_EVAL_HYBRID_AUTOLOAD": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *flags, "-c", prelude + code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done


def test_both_start_up_files_name_the_same_function() -> None:
    install = pkgutil.resolve_name((ROOT / "lm_eval_hybrid.start").read_text().strip())
    assert f"from {install.__module__} import {install.__name__}; {install.__name__}()" in HOOK
    # Python executes only lines of a .pth file that begin with `import`, one at a time.
    assert HOOK.startswith("import ") and HOOK.count("\n") == 1


def test_a_start_of_python_imports_two_modules_of_ours_and_no_other() -> None:
    code = f"import sys; before = set(sys.modules)\n{HOOK}print(sorted(set(sys.modules) - before))"
    assert run(code, flags=("-S",)).stdout == "['lm_eval_hybrid', 'lm_eval_hybrid.autoload']\n"


def test_the_model_is_added_to_the_stock_ones_and_nothing_heavy_is_imported() -> None:
    code = """
import sys
from lm_eval.api.registry import get_model, model_registry
assert len(model_registry) == 0  # else the harness would not add its own
import lm_eval.models
assert set(model_registry) == {*lm_eval.models.MODEL_MAPPING, "hybrid"}
assert len(lm_eval.models.MODEL_MAPPING) > 30 and "hybrid" not in lm_eval.models.MODEL_MAPPING
assert model_registry._objs["hybrid"] == "lm_eval_hybrid.harness.hybrid_lm:HybridLM"
assert not {"torch", "transformers", "nnsight"} & set(sys.modules)
assert get_model("dummy").__name__ == "DummyLM"
"""
    run(INSTALL + code)


def test_the_registry_still_fills_itself() -> None:
    code = """
from lm_eval.api.registry import get_model, model_registry
get_model("dummy")
assert "hybrid" in model_registry
"""
    run(INSTALL + code)


def test_the_modules_keep_their_own_loaders() -> None:
    code = """
import importlib, inspect, lm_eval.models, lm_eval.tasks
for module in (lm_eval.models, lm_eval.tasks):
    assert type(module.__spec__.loader).__name__ == type(module.__loader__).__name__ == "SourceFileLoader"
    assert inspect.getsource(module)
    importlib.reload(module)
"""
    run(INSTALL + code)


# Reading the stock tasks takes seconds; here it matters only which folders would be read, in which order.
FOLDERS = """
from pathlib import Path
import lm_eval.tasks.manager as manager
from lm_eval_hybrid.common.paths import tasks_dir
stock, ours, read = Path(manager.__file__).parent, tasks_dir(), []
manager.TaskIndex.build = staticmethod(lambda paths: read.append(list(paths)) or {})
def folders(*args, **kwargs):
    made = manager.TaskManager(*args, **kwargs)
    return read.pop(), made.include_path
"""


def test_our_tasks_come_after_the_stock_ones_and_before_the_users() -> None:
    code = """
mine, yours = Path("mine"), Path("yours")
assert folders() == ([stock, ours], None)
assert folders(include_path="mine") == ([stock, ours, mine], "mine")
assert folders("INFO", mine) == ([stock, ours, mine], mine)
assert folders(include_path=["mine", yours], metadata={}) == ([stock, ours, mine, yours], ["mine", yours])
assert folders(include_path=("mine",)) == ([stock, ours, mine], ("mine",))
assert folders(include_path="mine", include_defaults=False) == ([mine], "mine")
class Sub(manager.TaskManager): pass
assert Sub().include_path is None and read.pop() == [stock, ours]
"""
    run(INSTALL + FOLDERS + code)


def test_a_wrong_call_gives_the_harness_error() -> None:
    code = """
try: manager.TaskManager(nonsense=1)
except TypeError as error: print(error)
"""
    assert "nonsense" in run(INSTALL + FOLDERS + code).stdout


def test_register_acts_at_once_and_only_once() -> None:
    code = """
from lm_eval_hybrid import autoload
autoload.register(); autoload.register(); autoload.install()
from lm_eval.api.registry import model_registry
assert "hybrid" in model_registry and "hf" in model_registry
assert folders() == ([stock, ours], None)
"""
    run(FOLDERS + code, autoload="0")


def test_installing_twice_adds_one_finder() -> None:
    code = "import sys; before = len(sys.meta_path)\n" + INSTALL * 2 + "print(len(sys.meta_path) - before)"
    assert run(code).stdout == "1\n"


def test_the_off_switch_leaves_no_finder() -> None:
    code = "import sys; before = list(sys.meta_path)\n" + INSTALL + "print(sys.meta_path == before)"
    assert run(code, autoload="0").stdout == "True\n"


def test_our_faults_are_logged_and_the_harness_continues() -> None:
    code = """
import sys
sys.modules["lm_eval_hybrid.common.paths"] = None  # importing it now fails
import lm_eval.api.registry as registry
register = registry.model_registry.register
def refuse(name, target):
    if name == "hybrid": raise RuntimeError("refused")
    return register(name, target=target)
registry.model_registry.register = refuse
import lm_eval.models, lm_eval.tasks
assert not hasattr(lm_eval.tasks.TaskManager.__init__, "reads_hybrid_tasks")
assert "hybrid" not in registry.model_registry and "hf" in registry.model_registry
"""
    warned = run(INSTALL + code).stderr
    assert "could not be added to lm_eval.tasks" in warned and "could not be added to lm_eval.models" in warned
    assert "Traceback" not in warned


def test_errors_of_other_finders_are_left_to_python() -> None:
    code = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "lm_eval.models": raise OSError("a disk gone")
        return None
sys.meta_path.insert(1, Broken())
try: import lm_eval.models
except OSError as error: print(error)  # as without our hook
"""
    assert run(INSTALL + code).stdout == "a disk gone\n"


def test_the_hook_is_silent_if_the_package_is_gone(tmp_path: Path) -> None:
    # An editable install whose checkout was deleted: every start of Python would complain.
    done = subprocess.run([sys.executable, "-S", "-c", HOOK], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
