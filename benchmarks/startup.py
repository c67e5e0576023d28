"""What the start-up hook adds to every start of Python: median times in milliseconds, and their ratio.

Two bare virtual environments, alike but for the hook and the two modules that it reads, are started in turns.
"""

import compileall
import shutil
import statistics
import subprocess
import tempfile
import time
import venv
from pathlib import Path

STARTS = 100
ROOT = Path(__file__).resolve().parent.parent


def environment(folder: Path, hooked: bool) -> Path:
    """Make a virtual environment without pip; its Python."""
    venv.create(folder, symlinks=True)
    if hooked:
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "lm_eval_hybrid").mkdir()
        for name in ("lm_eval_hybrid.pth", "lm_eval_hybrid/__init__.py", "lm_eval_hybrid/autoload.py"):
            shutil.copy(ROOT / name, site / name)
        compileall.compile_dir(site, quiet=1)  # as pip does
    return folder / "bin" / "python"


def seconds(python: Path) -> float:
    """Wall time of one start of `python` that does nothing."""
    begun = time.perf_counter()
    subprocess.run([python, "-c", "pass"], check=True)
    return time.perf_counter() - begun


def main() -> None:
    """Print one line."""
    with tempfile.TemporaryDirectory() as folder:
        bare = environment(Path(folder, "bare"), hooked=False)
        hooked = environment(Path(folder, "hooked"), hooked=True)
        # Taken in turns, so that a busy moment of the machine falls on both.
        pairs = [(seconds(bare), seconds(hooked)) for _ in range(STARTS)]
    without, with_hook = (1000 * statistics.median(side) for side in zip(*pairs, strict=True))
    print(
        f"python start-up: {without:.1f} ms without the hook, {with_hook:.1f} ms with it "
        f"({with_hook - without:+.2f} ms, ratio {with_hook / without:.3f})"
    )


if __name__ == "__main__":
    main()
