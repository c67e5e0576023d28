"""An endpoint of chat completions on 127.0.0.1 whose model grades by rule: what a sentence does shows in one word.

It knows a prompt only as a judge does, by reading it; and it misbehaves as told, once for each of its `faults`.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tenacity import wait_none


def never_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr("lm_eval_hybrid.judging.endpoint.WAIT", wait_none())


RULES = ("plan", "compute", "check", "answer")  # the words


@dataclass(frozen=True)
class Fault:
    """An answer that is not what was asked for."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # how many of the body's bytes come before the connection ends
    endless: float | None = None  # seconds between the bytes of a body that has no end


def completion(content: str | None) -> bytes:
    message = {"role": "assistant", "content": content}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()


def says(content: str | None) -> Fault:
    return Fault(body=completion(content))


class JudgeServer:
    """Serves while the context lasts. `asked` are the requests' bodies, `keys` what their Authorization said."""

    def __init__(self, *faults: Fault, grader: Callable[[str], str] | None = None, always: Fault | None = None) -> None:
        self.faults = list(faults)
        self.always = always
        self.grader = grader or rule
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def prompts(self) -> list[str]:
        return [asked["messages"][0]["content"] for asked in self.asked]

    def __enter__(self) -> JudgeServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, asked: dict[str, Any], key: str | None) -> Fault:
        with self.lock:
            self.asked.append(asked)
            self.paths.append(path)
            self.keys.append(key)
            if self.faults:
                return self.faults.pop(0)
        return self.always or says(self.grader(asked["messages"][0]["content"]))


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # or some of many connections at once wait for a second


def _handler(server: JudgeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        disable_nagle_algorithm = True  # or each answer takes 40 ms

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = server.answer(self.path, asked, self.headers.get("Authorization"))
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if reply.endless is None:
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body[: reply.cut])
                return
            self.end_headers()
            try:
                while not server.closing.wait(reply.endless):
                    self.wfile.write(reply.body or b" ")
            except OSError:  # the other side has left
                pass

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def rule(prompt: str) -> str:
    """The right answer to a prompt, with the words around it that models are fond of."""
    *lines, form = prompt.strip().splitlines()
    data = [value for line in lines if (value := _value(line)) is not None]
    sentences = [value for value in data if isinstance(value, str)]
    categories = {value["number"]: word(value["description"]) for value in data if isinstance(value, dict)}
    asked = re.findall(r'"(\w+)":', form)
    if asked == ["title", "description"]:
        ((most, _),) = Counter(map(word, sentences)).most_common(1)
        found = {"title": f"They {most}", "description": f"Such a sentence does {most} something."}
    elif asked == ["category"]:
        found = {"category": next((n for n, described in categories.items() if described == word(sentences[0])), 1)}
    elif asked == ["fits", "confidence"]:
        fitting = word(sentences[0]) in categories.values()
        found = {"fits": fitting, "confidence": 9 if fitting else 1}
    else:
        assert asked == ["overlap"], form
        found = {"overlap": 10 if len(set(categories.values())) == 1 else 0}
    return f"<think>Let me see: {{1, 2}}.</think>\nHere you are:\n```json\n{json.dumps(found)}\n```\n"


def word(text: str) -> str:
    """The rule's word in a text; "" where there is none."""
    return next((rule for rule in RULES if re.search(rf"\b{rule}\b", text)), "")


def _value(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
