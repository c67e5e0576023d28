"""A private, CPU-only NDIF server from registry packages alone. Standard library only: it makes its own environment.

What runs is what /proc says, never what a file says: each part of a server carries the server's home in its
environment and in its working folder, so `stop` finds everything after any crash, and no process number goes stale.
"""
