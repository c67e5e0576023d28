"""Plain functions on tensors. They run in this process and, sent as source, on a remote model's server."""
