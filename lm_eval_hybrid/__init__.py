"""Hybrid language models for lm-evaluation-harness: a base model steered where a thinking model says so.

Importing this package is cheap on purpose: the start-up hook imports it whenever Python starts.
"""

__version__ = "0.1.0"
