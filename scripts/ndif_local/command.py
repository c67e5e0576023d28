"""The command line: `ndif-local`."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from ndif_local import parts
from ndif_local.home import DEFAULT_PORT, SPAN, Home, Ports, Problem, free_ports
from ndif_local.install import install
from ndif_local.server import Server

ABOUT = """\
A private NDIF server on this machine, for tests: no GPU, nothing but packages from the registry, all state in one
folder.

Its parts: redis, store (in place of S3), ray (with the controller and the models), api. Models are deployed as they
are first
asked for, by a hub id, or by the absolute path of a folder: then a client must know the path for a canonical name,

    nnsight.modeling.huggingface._ID_CACHE[path] = path

It runs whatever code a client sends it, for everyone who can reach its ports. All of them are on 127.0.0.1, so: for
every user of this machine. The API asks for no key.
"""

EXAMPLES = """\
examples:
  ndif-local start                            # installs first where need be; prints the URL
  NDIF_HOST=http://127.0.0.1:8421 python my_client.py
  ndif-local start --deploy /models/base=2    # two replicas of a model, and come back once they serve
  ndif-local kill model && ndif-local status  # a fault on purpose
  ndif-local run -- pytest tests/remote       # start, run with NDIF_HOST set, stop
  ndif-local --home /tmp/other --port 0 start # a second server, on ports that are free
  ndif-local stop
"""


def main(arguments: list[str] | None = None) -> int:
    """Do what is asked; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.do(options)
    except Problem as problem:
        print(f"ndif-local: error: {problem}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--home", type=Path, default=argparse.SUPPRESS, metavar="DIR",
                        help="the server's folder (default: $NDIF_LOCAL_HOME, or .ndif here)")  # fmt: skip
    common.add_argument(
        "--venv",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="the environment that it runs in (default: $NDIF_LOCAL_VENV, or DIR/venv of the home)",
    )
    common.add_argument("--port", type=_port, default=argparse.SUPPRESS, metavar="N",
                        help=f"the API's; the {SPAN - 1} after it are the other parts'; 0: any free ones "
                        f"(default: as before in this home, or {DEFAULT_PORT})")  # fmt: skip
    common.add_argument("--deploy", type=_model, action="append", default=argparse.SUPPRESS, metavar="MODEL[=N]",
                        help="bring a model up to N replicas (default: 1); may be repeated")  # fmt: skip
    common.add_argument("--online", action="store_true", default=argparse.SUPPRESS,
                        help="let the server reach the hub; otherwise it has folders and the hub's cache")  # fmt: skip
    common.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default=argparse.SUPPRESS,
                        help="of the server's own logs (default: info)")  # fmt: skip

    parser = argparse.ArgumentParser("ndif-local", description=ABOUT, epilog=EXAMPLES, formatter_class=layout,
                                     parents=[common])  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, do, about in (
        ("install", _install, "make the server's environment, or add what it lacks"),
        ("start", _start, "start what is missing, wait until it answers, print the URL"),
        ("stop", _stop, "end every process of this home, after a crash too"),
        ("status", _status, "say what runs; the exit status is 0 if every part is up"),
        ("kill", _kill, "kill a part at once, for tests of faults; `start` brings it back"),
        ("run", _run, "start, run a command with NDIF_HOST set, stop what was not running before"),
    ):
        command = commands.add_parser(name, help=about, description=about, parents=[common])
        command.set_defaults(do=do)
        if name == "kill":
            command.add_argument("part", choices=("model", *parts.PARTS))
        if name == "run":
            command.add_argument("command", nargs="+", metavar="-- COMMAND...")
    return parser


def _port(text: str) -> int:
    number = int(text)
    # Ray's workers take ports of the range between.
    if number != 0 and not (1024 <= number <= 10002 - SPAN or 20000 <= number <= 65536 - SPAN):
        raise argparse.ArgumentTypeError(
            f"0, or 1024 to {10002 - SPAN}, or 20000 to {65536 - SPAN}, is required; found {number}"
        )
    return number


def _model(text: str) -> tuple[str, int]:
    model, equals, count = text.rpartition("=")
    if not equals:
        return text, 1
    if not model or not count.isdecimal() or int(count) < 1:
        raise argparse.ArgumentTypeError(f"MODEL or MODEL=N, N 1 or more, is required; found {text!r}")
    return model, int(count)


def _say(line: str) -> None:
    print(f"ndif-local: {line}", file=sys.stderr, flush=True)


def _server(options: argparse.Namespace) -> Server:
    folder = Path(getattr(options, "home", None) or os.environ.get("NDIF_LOCAL_HOME") or ".ndif").resolve()
    venv = getattr(options, "venv", None) or os.environ.get("NDIF_LOCAL_VENV") or folder / "venv"
    # Not resolved: an environment's Python knows it by the way that it was called.
    return Server(Home(folder, Path(os.path.abspath(venv))), _say)


def _settings(options: argparse.Namespace, home: Home) -> parts.Settings:
    port = getattr(options, "port", None)
    noted = home.ports()
    if port == 0 or (port is None and noted is None):
        ports = free_ports() if port == 0 else Ports(DEFAULT_PORT)
    else:
        ports = noted if port is None else Ports(port)
    return parts.Settings(ports, getattr(options, "online", False), getattr(options, "log_level", "info"))


def _install(options: argparse.Namespace) -> int:
    home = _server(options).home
    install(home, _say)
    _say(f"{home.venv} has all that the server requires")
    return 0


def _start(options: argparse.Namespace) -> int:
    print(_started(_server(options), options).url)
    return 0


def _started(server: Server, options: argparse.Namespace) -> Ports:
    settings = _settings(options, server.home)
    server.start(settings, dict(getattr(options, "deploy", [])))
    return settings.ports


def _stop(options: argparse.Namespace) -> int:
    ended = _server(options).stop()
    _say(f"stopped ({ended} processes)" if ended else "nothing was running")
    return 0


def _status(options: argparse.Namespace) -> int:
    server = _server(options)
    ports = server.home.ports() or Ports(DEFAULT_PORT)
    rows = server.table(ports)
    for row in (("part", "state", "processes", "MB"), *rows):
        print("{:6} {:14} {:>9} {:>6}".format(*row))
    if all(state == "up" for _, state, *_ in rows):
        for model, replicas in parts.models(ports).items():
            print(f"model  {model} x {replicas}")
        print(ports.url)
        return 0
    return 1


def _kill(options: argparse.Namespace) -> int:
    _say(f"killed {options.part} ({_server(options).kill(options.part)} processes)")
    return 0


def _run(options: argparse.Namespace) -> int:
    server = _server(options)
    ports = server.home.ports()
    was_up = ports is not None and server.is_up(ports)
    signal.signal(signal.SIGTERM, _end)
    try:
        url = _started(server, options).url
        return _status_of(options.command, {**os.environ, "NDIF_HOST": url})
    finally:
        if not was_up:
            server.stop()


def _status_of(command: list[str], environment: dict[str, str]) -> int:
    """Run a command to its end; its exit status as a shell tells it."""
    # The terminal sends an interrupt to the command too; it is for the command to end, and we stop the server then.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        running = subprocess.Popen(command, env=environment)
    except OSError as error:
        raise Problem(f"a command that can be run is required; {command[0]}: {error.strerror}; see --help") from error
    signal.signal(signal.SIGTERM, lambda number, frame: running.terminate())
    status = running.wait()
    return status if status >= 0 else 128 - status


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
