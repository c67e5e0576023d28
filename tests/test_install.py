"""The package in fresh virtual environments: what an install adds, what the harness sees, what an uninstall leaves.

The environments see this interpreter's packages, except ours, through a folder of links: nothing is fetched.
In the quick tests the harness has only some of its tasks: it reads all 14,000 files to find any one.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WINDOWS = sys.platform == "win32"
SOME = (
    "arc",
    "glue",
    "gsm8k",
    "hellaswag",
    "hendrycks_math",
    "minerva_math",
)  # with groups, tags and Python tasks
TASKS = {"gsm8k_hybrid", "math500_hybrid", "gsm8k_embedded", "math500_embedded"}

# What a harness knows: its models, its tasks with their places and tags; and what it had to import for that.
PROBE = """
import json, sys
import lm_eval.models
from lm_eval.api.registry import model_registry
from lm_eval.tasks import TaskManager
index = TaskManager().task_index
print(json.dumps({
    "models": sorted(model_registry),
    "tasks": {name: [task.kind.name, str(task.yaml_path), sorted(task.tags)] for name, task in index.items()},
    "torch": "torch" in sys.modules,
}))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with neither pip nor packages of its own."""

    folder: Path

    @property
    def scripts(self) -> Path:
        return self.folder / ("Scripts" if WINDOWS else "bin")

    @property
    def python(self) -> Path:
        return self.scripts / ("python.exe" if WINDOWS else "python")

    @property
    def site(self) -> Path:
        (site,) = self.folder.glob("Lib/site-packages" if WINDOWS else "lib/python*/site-packages")
        return site

    def files(self) -> set[str]:
        """Everything that an install could leave: the files of site-packages and scripts."""
        places = (self.site, self.scripts)
        return {str(path.relative_to(self.folder)) for place in places for path in place.rglob("*") if path.is_file()}

    def run(self, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run this environment's Python, away from the checkout."""
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables}
        environment.pop("PYTHONPATH", None)
        return checked([self.python, *arguments], cwd=self.folder, env=environment)

    def pip(self, *arguments: str | Path) -> None:
        checked([sys.executable, "-m", "pip", "--python", self.python, *arguments], cwd=self.folder)

    def install(self, *what: str | Path) -> None:
        self.pip("install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", *what)

    def probe(self, **variables: str) -> dict:
        return json.loads(self.run("-c", PROBE, **variables).stdout)


def checked(command: list[str | Path], **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to this interpreter's packages, without ours and without start-up files."""
    links = tmp_path_factory.mktemp("whole")
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for path in Path(place).iterdir():
            if "lm_eval_hybrid" not in path.name and path.suffix not in (".pth", ".start"):
                try:
                    (links / path.name).symlink_to(path)
                except OSError as error:  # Windows without developer mode
                    pytest.skip(f"links cannot be made here: {error}")
    return links


def make(folder: Path, links: Path) -> Environment:
    """A new environment that sees the packages of `links`."""
    venv.create(folder, symlinks=not WINDOWS)
    made = Environment(folder)
    (made.site / "dependencies.pth").write_text(f"{links}\n")
    return made


@pytest.fixture(scope="module")
def some(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with only some of the harness's tasks. They are copied: it follows no links to their folders."""
    links = tmp_path_factory.mktemp("some")
    for path in whole.iterdir():
        if path.name != "lm_eval":
            (links / path.name).symlink_to(path.resolve())
    stock = (whole / "lm_eval").resolve()

    def others(folder: str, names: list[str]) -> list[str]:
        if Path(folder) != stock / "tasks":
            return ["__pycache__"]
        return [name for name in names if name not in SOME and not name.endswith(".py")]

    shutil.copytree(stock, links / "lm_eval", ignore=others)
    return links


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that git tracks or would track, so that no build touches the checkout."""
    copy = tmp_path_factory.mktemp("tree")
    listed = checked(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    checked([sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, tree])
    (made,) = out.glob("*.tar.gz")
    return made


def installed(environment: Environment, *what: str | Path) -> Iterator[Environment]:
    """The environment with the package installed; afterwards a check that uninstalling leaves nothing."""
    before = environment.files()
    environment.install(*what)
    yield environment
    environment.pip("uninstall", "--quiet", "--yes", "lm-eval-hybrid")
    assert environment.files() == before, "the uninstall left something"


@pytest.fixture(scope="module")
def regular(sdist: Path, some: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """The package installed from the wheel that pip makes of the sdist."""
    yield from installed(make(tmp_path_factory.mktemp("regular") / "venv", some), sdist)


@pytest.fixture(scope="module")
def editable(tree: Path, some: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    yield from installed(make(tmp_path_factory.mktemp("editable") / "venv", some), "--editable", tree)


@pytest.fixture(scope="module")
def stock(regular: Environment) -> dict:
    """What the harness alone knows: the package is installed, but its hook switched off."""
    return regular.probe(LM_EVAL_HYBRID_AUTOLOAD="0")


def check_known(seen: dict, stock: dict, tasks: Path) -> None:
    """Check that all of ours is known, and nothing of the harness's is lost, moved, retagged or overridden."""
    assert set(seen["models"]) - set(stock["models"]) == {"hybrid"}
    assert set(stock["models"]) <= set(seen["models"]) and "hf" in stock["models"]
    ours = {name: entry for name, entry in seen["tasks"].items() if name not in stock["tasks"]}
    assert ours.keys() >= TASKS
    assert {kind for kind, _, _ in ours.values()} <= {"TASK", "PY_TASK", "GROUP"}, "a tag of ours is among them"
    assert all(Path(path).resolve().is_relative_to(tasks.resolve()) for _, path, _ in ours.values())
    assert {name: entry for name, entry in seen["tasks"].items() if name in stock["tasks"]} == stock["tasks"]
    assert {"gsm8k", "ai2_arc", "glue", "hendrycks_math"} <= stock["tasks"].keys()
    assert seen["torch"] == stock["torch"], "the hook made the harness import torch"


def test_the_harness_knows_a_regular_install(regular: Environment, stock: dict) -> None:
    check_known(regular.probe(), stock, regular.site / "lm_eval_hybrid" / "_data" / "tasks")


def test_the_harness_knows_an_editable_install(editable: Environment, stock: dict, tree: Path) -> None:
    check_known(editable.probe(), stock, tree / "tasks")


def test_a_regular_install_can_save_a_bundle(regular: Environment, tmp_path: Path) -> None:
    code = (
        "from lm_eval_hybrid.bundles.bundle import Bundle; from lm_eval_hybrid.bundles.store.resolve import resolve; "
        f"print(Bundle.load(resolve('embedded')).save({str(tmp_path / 'copy')!r}).identity)"
    )
    assert regular.run("-c", code).stdout.startswith("embedded@")


@pytest.mark.parametrize("kind", ["regular", "editable"])
def test_the_command_line_lists_our_tasks(kind: str, request: pytest.FixtureRequest) -> None:
    listed = request.getfixturevalue(kind).run("-m", "lm_eval", "ls", "tasks").stdout
    names = {line.split("|")[1].strip() for line in listed.splitlines() if line.count("|") > 2}
    assert names >= TASKS | {"gsm8k", "hellaswag"}


@pytest.mark.parametrize("kind", ["regular", "editable"])
def test_paths_point_at_the_shipped_folders(kind: str, request: pytest.FixtureRequest, tree: Path) -> None:
    code = """
from lm_eval_hybrid.common import paths
print(paths.tasks_dir(), paths.bundles_dir(), paths.embedded_dir(), sep="\\n")
"""
    found = request.getfixturevalue(kind).run("-c", code).stdout.splitlines()
    shipped = (tree / "tasks", tree / "behaviors", tree / "lm_eval_hybrid" / "embedded" / "data")
    for place, source in zip(found, shipped, strict=True):
        assert contents(Path(place)) == contents(source) != {}


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by relative path, without bytecode."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_sdist_holds_what_a_wheel_is_made_of(sdist: Path, tree: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    data = {path.relative_to(tree).as_posix() for name in ("tasks", "behaviors") for path in (tree / name).rglob("*")}
    modules = {path.relative_to(tree).as_posix() for path in (tree / "lm_eval_hybrid").rglob("*.py")}
    assert {
        "LICENSE",
        "README.md",
        "setup.py",
        "lm_eval_hybrid.pth",
        "lm_eval_hybrid.start",
    } | data | modules <= held


def test_the_wheel_declares_what_the_package_is(regular: Environment) -> None:
    code = """
import importlib.metadata, json, lm_eval_hybrid
ours = importlib.metadata.distribution("lm-eval-hybrid")
assert ours.version == lm_eval_hybrid.__version__
assert any(path.name == "LICENSE" for path in ours.files)
print(json.dumps({f"{point.group}:{point.name}": point.value for point in ours.entry_points}))
"""
    assert json.loads(regular.run("-c", code).stdout) == {
        "console_scripts:lm-eval-hybrid": "lm_eval_hybrid.commands.main:main",
        "lm_eval.models:hybrid": "lm_eval_hybrid.harness.hybrid_lm:HybridLM",
    }
    assert (regular.scripts / ("lm-eval-hybrid.exe" if WINDOWS else "lm-eval-hybrid")).is_file()


def test_a_wheel_has_every_module(regular: Environment, tree: Path) -> None:
    # A subpackage without an __init__.py would be left out silently.
    package = {name: code for name, code in contents(tree / "lm_eval_hybrid").items() if name.endswith(".py")}
    installed = contents(regular.site / "lm_eval_hybrid")
    assert {name: installed.get(name) for name in package} == package


def test_the_hook_does_no_harm_without_a_harness(regular: Environment, tmp_path: Path) -> None:
    alone = Environment(tmp_path / "venv")
    venv.create(alone.folder, symlinks=not WINDOWS)
    shutil.copytree(regular.site, alone.site, dirs_exist_ok=True)
    (alone.site / "dependencies.pth").unlink()
    code = """
import sys, lm_eval_hybrid.autoload
assert any(type(finder).__module__ == "lm_eval_hybrid.autoload" for finder in sys.meta_path)
try: import lm_eval.models
except ModuleNotFoundError as error: print(error.name)
"""
    done = alone.run("-c", code)
    assert (done.stdout, done.stderr) == ("lm_eval\n", "")


@pytest.mark.slow
def test_the_harness_keeps_all_its_tasks(tree: Path, whole: Path, tmp_path: Path) -> None:
    for environment in installed(make(tmp_path / "venv", whole), tree):
        stock = environment.probe(LM_EVAL_HYBRID_AUTOLOAD="0")
        assert len(stock["tasks"]) > 10_000
        check_known(environment.probe(), stock, environment.site / "lm_eval_hybrid" / "_data" / "tasks")


@pytest.mark.slow
def test_the_model_is_the_one_that_the_registry_gives(regular: Environment) -> None:
    code = "from lm_eval.api.registry import get_model; print(get_model('hybrid'))"
    assert regular.run("-c", code).stdout == "<class 'lm_eval_hybrid.harness.hybrid_lm.HybridLM'>\n"


@pytest.mark.slow
def test_a_users_mistake_is_one_line_on_the_harness_command_line(regular: Environment) -> None:
    command = [
        "-m",
        "lm_eval",
        "--model",
        "hybrid",
        "--model_args",
        "arm=sideways",
        "--tasks",
        "gsm8k_embedded",
    ]
    done = subprocess.run([regular.python, *command], capture_output=True, text=True, cwd=regular.folder)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("lm-eval-hybrid: error: ")


@pytest.mark.slow
def test_uv_installs_the_same_files(tree: Path, some: Path, regular: Environment, tmp_path: Path) -> None:
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        pytest.skip("uv is neither on PATH nor beside this Python")
    other = make(tmp_path / "venv", some)
    options = ["--quiet", "--offline", "--no-deps", "--no-build-isolation", "--cache-dir", tmp_path / "cache"]
    for way in ([tree], ["--editable", tree]):
        checked([uv, "pip", "install", *options, "--reinstall", "--python", other.python, *way])
        assert "hybrid" in other.probe()["models"]
        if way == [tree]:
            assert contents(other.site / "lm_eval_hybrid") == contents(regular.site / "lm_eval_hybrid")
    checked([uv, "pip", "uninstall", "--quiet", "--python", other.python, "lm-eval-hybrid"])
    assert not [name for name in other.files() if "hybrid" in name]
