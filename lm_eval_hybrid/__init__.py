"""Hybrid language models for lm-evaluation-harness: a base model, steered where a thinking model disagrees with it.

This module imports nothing: the start-up hook imports it whenever Python starts.
"""

__version__ = "0.1.0"
