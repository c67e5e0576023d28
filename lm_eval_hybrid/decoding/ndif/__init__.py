"""Decoding with models on an NDIF server."""
