"""What setup.cfg cannot say: files from outside the package that the wheel carries."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
SHIPPED = ("tasks", "behaviors")
STARTUP = ("lm_eval_hybrid.pth", "lm_eval_hybrid.start")


class BuildPy(build_py):
    """Adds the start-up files, which go beside the package, and the top-level data folders, as its _data/."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            # Such a wheel holds no copy of the code: it is what lies in the folder to be installed.
            top = Path(self.get_finalized_command("install").install_lib)
        else:
            top = Path(self.build_lib)
            for name in SHIPPED:
                target = top / "lm_eval_hybrid" / "_data" / name
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(HERE / name, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        for name in STARTUP:
            self.copy_file(str(HERE / name), str(top / name))


setup(cmdclass={"build_py": BuildPy})
