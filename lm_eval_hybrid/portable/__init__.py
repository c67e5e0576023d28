"""Plain functions on tensors that run in this process and, sent as source text, on a remote model's server.

The room's rules, so that a server needs neither this package nor the same version of Python:

- Only plain functions and constants. Classes, closures and `super()` would travel as the bytecode of one version of
  Python, or not at all.
- Nothing is imported but the standard library, torch, transformers, nnsight, and this room itself.
- A function keeps nothing between requests, so that a request can be sent again.

`models.ndif.client` registers the room as a whole: whatever a program calls here is sent along with it.
"""
