"""What holds for every test: nothing is downloaded, and the machine's own settings do not matter."""

import os

# Read when the Hugging Face libraries are imported, hence set before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The models here are tiny: more threads would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("LM_EVAL_HYBRID_AUTOLOAD", "LM_EVAL_HYBRID_BEHAVIORS", "LM_EVAL_HYBRID_DATA"):
    os.environ.pop(name, None)
