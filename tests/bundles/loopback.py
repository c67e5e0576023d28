"""A hub on 127.0.0.1: enough of the Hugging Face API for its own client. It records requests, and can misbehave."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # how many of the body's bytes come before the connection ends


def _handler(server: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            server.requests.append(f"{self.command} {path}")
            # The client asks for the rest of a file that was cut; it gets nothing.
            reply = Reply(503) if self.headers.get("Range") else server.reply(self.command, path, body)
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body[: reply.cut])

        do_GET = do_HEAD = do_POST = do_PUT = _answer

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@dataclass
class Repository:
    """Files by commit, and the commits of branches and tags."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], message: str) -> str:
        commit = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[commit] = files
        self.messages.append(message)
        self.branches["main"] = commit
        return commit

    def find(self, revision: str) -> str | None:
        commit = self.branches.get(revision) or self.tags.get(revision, revision)
        return commit if commit in self.commits else None


class Hub:
    """A hub on a free port while the context lasts. `announced` to `resolved` make it misbehave."""

    def __init__(self) -> None:
        self.requests: list[str] = []  # methods and paths
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.announced: dict[str, int | None] = {}  # sizes, by file
        self.cut: dict[str, int] = {}  # bytes of a file before the connection breaks
        self.failing: set[str] = set()  # files
        self.resolved: dict[str, str] = {}  # the commit that the hub names instead of a commit
        self.routes: list[tuple[str, Callable[..., Reply]]] = [
            (r"POST /api/repos/create", self._create),
            (r"POST /api/validate-yaml", lambda body: _json({"errors": [], "warnings": []})),
            (r"GET /api/models/(?P<repo>[^/]+/[^/]+)/refs", self._refs),
            (r"GET /api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>.+)", self._info),
            (r"GET /api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>.+)", self._tree),
            (r"POST /api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>.+)", self._preupload),
            (r"POST /api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>.+)", self._commit),
            (r"POST /api/models/(?P<repo>[^/]+/[^/]+)/tag/(?P<revision>.+)", self._tag),
            (r"POST /(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"PUT /uploads/(?P<oid>[0-9a-f]{64})", self._upload),
            (r"(GET|HEAD) /(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>.+)/(?P<name>[^/]+)", self._file),
        ]

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reply(self, method: str, path: str, body: bytes) -> Reply:
        for pattern, answer in self.routes:
            if match := re.fullmatch(pattern, f"{method} {path}"):
                arguments = match.groupdict()
                if "repo" in arguments and arguments["repo"] not in self.repositories:
                    return _missing("RepoNotFound")
                return answer(body=body, **arguments)
        return Reply(404)

    def _create(self, body: bytes) -> Reply:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        there = repo in self.repositories
        if not there:
            self.repositories[repo] = Repository(private=asked.get("visibility") == "private")
            self.repositories[repo].commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return _json({"url": f"{self.url}/{repo}", "error": "it exists"}, 409 if there else 200)

    def _refs(self, body: bytes, repo: str) -> Reply:
        def listed(refs: dict[str, str], kind: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": commit} for n, commit in refs.items()]

        found = self.repositories[repo]
        return _json({"branches": listed(found.branches, "heads"), "tags": listed(found.tags, "tags"), "converts": []})

    def _info(self, body: bytes, repo: str, revision: str) -> Reply:
        commit = self.repositories[repo].find(revision)
        if commit is None:
            return _missing("RevisionNotFound")
        files = self.repositories[repo].commits[commit]
        sizes = {name: self.announced.get(name, len(data)) for name, data in files.items()}
        siblings = [{"rfilename": name, "size": size, "blobId": "0" * 40} for name, size in sizes.items()]
        return _json({"id": repo, "sha": self.resolved.get(commit, commit), "siblings": siblings})

    def _tree(self, body: bytes, repo: str, revision: str) -> Reply:
        files = self.repositories[repo].commits[revision]
        blobs = {name: hashlib.sha1(data).hexdigest() for name, data in files.items()}
        return _json([{"type": "file", "path": n, "size": len(files[n]), "oid": oid} for n, oid in blobs.items()])

    def _preupload(self, body: bytes, repo: str, revision: str) -> Reply:
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
        return _json({"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]})

    def _batch(self, body: bytes, repo: str) -> Reply:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.url}/uploads/{item['oid']}"}}}
            for item in json.loads(body)["objects"]
        ]
        return _json({"objects": objects, "transfer": "basic"})

    def _upload(self, body: bytes, oid: str) -> Reply:
        self.uploads[oid] = body
        return Reply()

    def _commit(self, body: bytes, repo: str, revision: str) -> Reply:
        found = self.repositories[repo]
        files, message = dict(found.commits[found.branches[revision]]), ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.uploads[value["oid"]]
            else:
                assert line["key"] == "file", line
                files[value["path"]] = base64.b64decode(value["content"])
        commit = found.commit(files, message)
        return _json({"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{repo}/commit/{commit}"})

    def _tag(self, body: bytes, repo: str, revision: str) -> Reply:
        found, tag = self.repositories[repo], json.loads(body)["tag"]
        commit = found.find(revision)
        if tag in found.tags or commit is None:
            return _json({"error": "no"}, 409)
        found.tags[tag] = commit
        return _json({})

    def _file(self, body: bytes, repo: str, revision: str, name: str) -> Reply:
        commit = self.repositories[repo].find(revision)
        data = self.repositories[repo].commits.get(commit or "", {}).get(name)
        if data is None:
            return _missing("EntryNotFound")
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": self.resolved.get(commit, commit)}
        return Reply(500 if name in self.failing else 200, data, headers, self.cut.get(name))


def _json(value: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _missing(code: str) -> Reply:
    return Reply(404, b"", {"X-Error-Code": code})


@contextmanager
def online(monkeypatch: pytest.MonkeyPatch, cache: Path, hub: str = "http://127.0.0.1:9") -> Iterator[None]:
    """The hub is at `hub`, its cache at `cache`, and no connection goes to any other machine."""
    from huggingface_hub import close_session, constants

    for name, value in {
        "ENDPOINT": hub,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_loopback")  # whatever token the machine has stays out of it
    monkeypatch.setattr(socket.socket, "connect", _only_local(socket.socket.connect))
    close_session()
    yield
    close_session()


def _only_local(connect: Callable[..., None]) -> Callable[..., None]:
    def checked(self: socket.socket, address: Any) -> None:
        if address[0] != "127.0.0.1":
            pytest.fail(f"a test reached out to {address}")  # not an Exception, which the client might handle
        connect(self, address)

    return checked
