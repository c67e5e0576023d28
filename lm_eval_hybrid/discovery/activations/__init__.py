"""Residual-stream activations at sentences of traces, sharded on disk."""
