"""A page in headless Chromium or Chrome; tests are skipped where neither is installed."""

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """A page open in the browser, controlled over its debugging protocol."""

    def __init__(self, folder: Path, file: Path) -> None:
        self.websocket = pytest.importorskip("websocket", reason="needs websocket-client to control the browser")
        if CHROMIUM is None:
            pytest.skip("needs Chromium or Chrome")
        arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-port=0",
            "--window-size=1200,900",
        ]
        command = [CHROMIUM, *arguments, f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self.socket = self._connect(folder / "DevToolsActivePort")
            self.count, self.problems = 0, []
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
            self.call("Page.navigate", url=file.as_uri())
            self.wait("document.readyState === 'complete' && location.protocol === 'file:'")
        except BaseException:
            self.close()
            raise

    def _connect(self, port_file: Path) -> Any:
        end = time.monotonic() + 30
        while not (port_file.exists() and port_file.read_text().strip()):
            if time.monotonic() > end or self.process.poll() is not None:
                pytest.skip("the browser did not start")
            time.sleep(0.05)
        with urlopen(f"http://127.0.0.1:{port_file.read_text().split()[0]}/json") as answer:
            (target,) = [each for each in json.load(answer) if each["type"] == "page"]
        return self.websocket.create_connection(target["webSocketDebuggerUrl"], suppress_origin=True, timeout=30)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.problems.append(message["params"])
            if message.get("id") == self.count:
                return message["result"]

    def get(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        end = time.monotonic() + 20
        while not self.get(expression):
            assert time.monotonic() < end, f"{expression} is still false after 20 s"
            time.sleep(0.02)

    def move(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)

    def close(self) -> None:
        if hasattr(self, "socket"):
            self.socket.close()
        self.process.terminate()
        self.process.wait(30)
