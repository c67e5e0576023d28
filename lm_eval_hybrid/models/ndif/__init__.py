"""A model on an NDIF server: the client that sends programs there, and the model's side here."""
