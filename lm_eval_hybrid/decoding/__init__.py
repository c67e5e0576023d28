"""Hybrid decoding: which token comes next. It knows tensors and models, not the harness."""
