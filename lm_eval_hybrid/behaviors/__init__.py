"""Behavior bundles: what steers a base model, as a versioned, verified folder (DESIGN section 3).

Importing this package imports neither torch nor transformers; loading a bundle's tensors imports torch.
"""

from lm_eval_hybrid.behaviors.bundle import Bundle
from lm_eval_hybrid.behaviors.manifest import Manifest

__all__ = ["Bundle", "Manifest"]
