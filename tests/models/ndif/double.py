"""A test double of an NDIF server, which commits faults on demand."""

import asyncio
import io
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import zstandard
from aiohttp import web
from nnsight.schema.response import ResponseModel, Status


@dataclass
class Double:
    """The behavior of one server, request by request, and the requests that it got.

    Attributes:
        replies: one for each request, in order; the last one repeats.
        headers: of the requests.
    """

    replies: list["Reply"]
    host: str = ""
    headers: list[dict[str, str]] = field(default_factory=list)
    sockets: dict[str, web.WebSocketResponse] = field(default_factory=dict)
    results: dict[str, bytes] = field(default_factory=dict)

    async def subscribe(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        name = f"session {len(self.sockets)}"
        self.sockets[name] = socket
        await socket.send_str(json.dumps({"session_id": name}))
        async for _ in socket:
            pass
        return socket

    async def request(self, request: web.Request) -> web.Response:
        envelope = json.loads((await request.post())["data"])
        reply = self.replies[min(len(self.headers), len(self.replies) - 1)]
        self.headers.append(dict(request.headers))
        return await reply(self, self.sockets[envelope["session_id"]], envelope["compress"])

    async def result(self, request: web.Request) -> web.Response:
        return web.Response(body=self.results[request.match_info["name"]])


Reply = Callable[[Double, web.WebSocketResponse, bool], Coroutine[Any, Any, web.Response]]


def response(status: Status, description: str = "", data: Any = None) -> ResponseModel:
    return ResponseModel(id="a request", status=status, description=description, data=data)


def _received() -> web.Response:
    return web.Response(text=response(Status.RECEIVED).model_dump_json())


def saved(value: Any) -> bytes:
    """As nnsight has `torch.save` write it."""
    with io.BytesIO() as file:
        torch.save(value, file, pickle_protocol=4)
        return file.getvalue()


def packed(blob: bytes, compress: bool) -> bytes:
    return zstandard.ZstdCompressor().compress(blob) if compress else blob


def answers(value: Any, at_once: bool = True) -> Reply:
    """A result, on the socket or as an address to fetch it from."""
    return sends(saved({"answer": value}), at_once)


def sends(blob: bytes, at_once: bool = True) -> Reply:
    async def reply(double: Double, socket: web.WebSocketResponse, compress: bool) -> web.Response:
        await socket.send_str(response(Status.RUNNING).model_dump_json())
        if at_once:
            await socket.send_bytes(response(Status.COMPLETED, data=packed(blob, compress)).pickle())
        else:
            double.results["one"] = packed(blob, compress)
            await socket.send_str(response(Status.COMPLETED, data=f"{double.host}/results/one").model_dump_json())
        return _received()

    return reply


def frames(blob: bytes) -> Reply:
    """Raw bytes as a frame on the socket."""

    async def reply(double: Double, socket: web.WebSocketResponse, compress: bool) -> web.Response:
        await socket.send_bytes(blob)
        return _received()

    return reply


def says(text: str) -> Reply:
    """A text frame that is no state of a request."""

    async def reply(double: Double, socket: web.WebSocketResponse, compress: bool) -> web.Response:
        await socket.send_str(text)
        return _received()

    return reply


def fails(description: str) -> Reply:
    """A request that came to an error."""
    return says(response(Status.ERROR, description).model_dump_json())


def refuses(status: int, detail: str) -> Reply:
    async def reply(double: Double, socket: web.WebSocketResponse, compress: bool) -> web.Response:
        return web.json_response({"detail": detail}, status=status)

    return reply


async def goes(double: Double, socket: web.WebSocketResponse, compress: bool) -> web.Response:
    """The socket is closed before the answer."""
    await socket.close()
    return _received()


async def is_silent(double: Double, socket: web.WebSocketResponse, compress: bool) -> web.Response:
    """The request is received, and nothing comes of it."""
    return _received()


@contextmanager
def serving(*replies: Reply, port: int = 0) -> Iterator[Double]:
    """A server on a port of this machine, for as long as the block lasts."""
    double, loop = Double(list(replies)), asyncio.new_event_loop()
    app = web.Application(client_max_size=2**26)
    app.add_routes(
        [
            web.get("/subscribe", double.subscribe),
            web.post("/request", double.request),
            web.get("/results/{name}", double.result),
        ]
    )
    runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        return runner.addresses[0][1]

    double.host = f"http://127.0.0.1:{loop.run_until_complete(start())}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield double
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
