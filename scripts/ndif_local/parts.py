"""What a server is made of: each part's command, the environment that all share, how a part says that it is up."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass

from ndif_local.home import PLUGIN, Home, Ports
from ndif_local.install import redis_server

LOOPBACK = "127.0.0.1"
PARTS = ("redis", "store", "ray", "api")  # in the order in which they start
MODEL = "ray::CPUModelActor"  # how a process that holds a model calls itself


@dataclass(frozen=True)
class Settings:
    """What a server is started with."""

    ports: Ports
    online: bool = False
    log_level: str = "info"


def command(part: str, home: Home, ports: Ports) -> list[str]:
    """The command line of a part."""
    return {"redis": _redis, "store": _store, "ray": _ray, "api": _api}[part](home, ports)


def controller(home: Home) -> list[str]:
    """Launches the controller, an actor of the cluster named by RAY_ADDRESS, where there is none, and ends."""
    return [str(home.python), "-m", "ndif.services.ray.deployments.controller.controller"]


def deployment(home: Home, models: dict[str, int]) -> list[str]:
    """Brings models up to so many replicas, and ends."""
    return [str(home.python), "-m", "ndif_local_deploy", *(f"{model}={count}" for model, count in models.items())]


def environment(home: Home, settings: Settings) -> dict[str, str]:
    """The caller's environment, rid of what would lead Ray and Python elsewhere, with the server's own settings."""
    ports = settings.ports
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHON", "NDIF_LOCAL_"))}
    # Ray does not start with a GPU, which the controller wants to see, where this names none.
    for name in ("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VIRTUAL_ENV"):
        kept.pop(name, None)
    without_proxy = ",".join(filter(None, (kept.get("no_proxy") or kept.get("NO_PROXY"), LOOPBACK, "localhost")))
    return {
        "OMP_NUM_THREADS": "1",  # many small processes share the machine; a caller's own value stands
        **kept,
        **({} if settings.online else {"HF_HUB_OFFLINE": "1"}),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(PLUGIN),
        "PYTHONUNBUFFERED": "1",
        "no_proxy": without_proxy,
        "NO_PROXY": without_proxy,
        "NDIF_HOME": str(home.folder),
        "NDIF_LOG_LEVEL": settings.log_level.upper(),
        "NDIF_REDIS_URL": f"redis://{LOOPBACK}:{ports.redis}",
        "NDIF_OBJECT_STORE_URL": f"http://{LOOPBACK}:{ports.store}",
        "NDIF_RAY_ADDRESS": f"ray://{LOOPBACK}:{ports.ray_client}",
        "NDIF_API_PORT": str(ports.api),
        "NDIF_API_URL": ports.url,
        "NDIF_CONTROLLER_IMPORT_PATH": "ndif_local_actors.CPUControllerActor",
        "NDIF_MODEL_IMPORT_PATH": "ndif_local_actors.CPUModelActor",
        "NDIF_DEFAULT_DTYPE": "float32",  # what a CPU computes in, and local models are loaded in
        "NDIF_DEPLOYMENTS": "",
        "RAY_ADDRESS": f"{LOOPBACK}:{ports.ray}",
        # A cluster of its own secret. Without one, a dispatcher that has lost its cluster may start another, which
        # leaves a secret in the user's home, which the next cluster then asks for and the controller does not know.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home.token),
        # What keeps Ray on loopback. Given 127.0.0.1 on Linux, it would take the machine's outward address in its
        # place.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "GRPC_ENABLE_FORK_SUPPORT": "0",  # with it, some of the processes that Ray forks for its clients die at birth
    }


def make_token(home: Home) -> None:
    """The secret of the home's Ray cluster, once."""
    if not home.token.exists():
        with open(home.token, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(secrets.token_hex(32))


def answers(part: str, ports: Ports) -> bool:
    """Whether a part does what it is for."""
    asked: dict[str, Callable[[], bool]] = {
        "redis": lambda: redis(ports, "PING") == b"+PONG\r\n",
        "store": lambda: status(ports.store, "/") == 200,
        "ray": lambda: status(ports.dashboard, "/api/version") is not None,
        "api": lambda: status(ports.api, "/connected") == 200,
    }
    return asked[part]()


def redis(ports: Ports, line: str) -> bytes | None:
    """Redis's answer to one command, None where there is none."""
    try:
        with socket.create_connection((LOOPBACK, ports.redis), timeout=2) as connection:
            connection.sendall(f"{line}\r\n".encode())
            return connection.recv(1024)
    except OSError:
        return None


def status(port: int, path: str) -> int | None:
    """The HTTP status of what a port answers, None where it does not."""
    answer = _get(port, path)
    return None if answer is None else answer[0]


def models(ports: Ports) -> dict[str, int]:
    """Models that the API says are deployed, and how many replicas serve."""
    answer = _get(ports.api, "/status")
    if answer is None or answer[0] != 200:
        return {}
    counts: dict[str, int] = {}
    for replica in json.loads(answer[1])["deployments"].values():
        if replica.get("application_state") == "RUNNING" and replica.get("model_key"):
            name = json.loads(replica["model_key"].partition(":")[2])["repo_id"]
            counts[name] = counts.get(name, 0) + 1
    return counts


def _get(port: int, path: str) -> tuple[int, bytes] | None:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=15)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _redis(home: Home, ports: Ports) -> list[str]:
    return [redis_server(home), "--bind", LOOPBACK, "--port", str(ports.redis), "--save", "", "--appendonly", "no"]


def _store(home: Home, ports: Ports) -> list[str]:
    """Stands in for S3, in memory: where results go that are over 8 MiB, or that nobody waits for."""
    return [str(home.python), "-m", "moto.server", "-H", LOOPBACK, "-p", str(ports.store)]


def _ray(home: Home, ports: Ports) -> list[str]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # The controller places models on nodes that have a GPU, by what the GPU's memory has room for: here, the machine's.
    resources = {"head": 10, "cuda_memory_bytes": memory, "cpu_memory_bytes": memory}
    options = {
        "node-ip-address": LOOPBACK,
        "port": ports.ray,
        "ray-client-server-port": ports.ray_client,
        "dashboard-host": LOOPBACK,
        "dashboard-port": ports.dashboard,
        "dashboard-agent-listen-port": ports.agent,
        "include-dashboard": "true",  # the controller asks it for nodes and actors
        "include-log-monitor": "false",
        "num-cpus": 1,  # as many idle workers are kept; the actors ask for none
        "num-gpus": 1,
        "resources": json.dumps(resources),
        "object-store-memory": 200_000_000,
        "temp-dir": home.ray,
    }
    start = [str(home.python), "-m", "ray.scripts.scripts", "start", "--head", "--block", "--no-monitor"]
    return start + [f"--{name}={value}" for name, value in options.items()]


def _api(home: Home, ports: Ports) -> list[str]:
    gunicorn = [str(home.python), "-m", "gunicorn", "--config", "python:ndif_local_api"]
    return [*gunicorn, "ndif.services.api.app:app"]
