"""Hybrid decoding (DESIGN, section 2). Knows tensors and backends, not the harness."""
