"""A model on an NDIF server: what is asked of it, and how the asking survives what can go wrong on the way."""
