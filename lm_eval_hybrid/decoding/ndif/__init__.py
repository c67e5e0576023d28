"""Decoding with a model on an NDIF server."""
