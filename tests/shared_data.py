"""Where real benchmarks and tokenizers lie, for the tests that need some; they are skipped where it is no folder."""

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("LM_EVAL_HYBRID_TEST_DATA", ROOT.parent / "shared" / "data"))
