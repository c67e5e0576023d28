"""The API's settings for gunicorn: the server's own, on loopback. Its own address would be that of every interface."""

import os

# Imported before nnsight is, which gives every object a `save`: anyio trips over that as it is imported, which it would
# otherwise be with the first upload over a megabyte, and such uploads would all be refused.
import anyio._backends._asyncio  # noqa: F401
from ndif.services.api.gunicorn_conf import on_starting, post_fork, timeout, worker_class, workers  # noqa: F401

bind = f"127.0.0.1:{os.environ['NDIF_API_PORT']}"
loglevel = os.environ["NDIF_LOG_LEVEL"].lower()
graceful_timeout = 2
