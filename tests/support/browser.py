"""A headless Chromium, driven by the DevTools protocol through a pair of pipes: it needs no library and no driver."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nightshift_common.patience import patience
from tests.support.waiting import wait_for

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,1000",
]  # fmt: skip
ANSWER_SECONDS = 30


def program() -> str | None:
    """Return the browser of this machine; None where there is none."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class ProtocolError(Exception):
    """The browser refused a call."""


class Page:
    """One tab."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers, self._number, self._rest = commands, answers, 0, b""
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + patience(ANSWER_SECONDS)
        while True:
            answer = self._read(until)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise ProtocolError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, url: str) -> None:
        """Go to an address."""
        assert "errorText" not in self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, None where it throws: what it asks for may not be there yet."""
        try:
            answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        except ProtocolError:  # another page came in between
            return None
        return answer["result"].get("value") if "exceptionDetails" not in answer else None

    def wait_for(self, expression: str, what: str) -> Any:
        """Return the value of an expression as soon as it is truthy; a failure shows the page's text."""
        try:
            return wait_for(lambda: self.evaluate(expression), what, seconds=60)
        except AssertionError as error:
            raise AssertionError(f"{error}; the page says:\n{self.evaluate('document.body.innerText')}") from error

    def type(self, selector: str, text: str) -> None:
        """Type into a field."""
        self.wait_for(f"(document.querySelector({selector!r}).focus(), true)", selector)
        self.call("Input.insertText", text=text)

    def drop(self, file: Path, x: float, y: float) -> None:
        """Drop a file on a point of the window, pixels."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def screenshot(self, file: Path) -> None:
        """Write what the window shows to a PNG file."""
        file.write_bytes(b64decode(self.call("Page.captureScreenshot")["data"]))

    def _read(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(until - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            content = os.read(self._answers, 1 << 20)
            assert content, "the browser ended"
            self._rest += content
        first, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(first)
        return found


@contextmanager
def open_page(browser: str, folder: Path) -> Iterator[Page]:
    """Run a browser whose profile is in `folder`; yield its page."""
    command_end, commands = os.pipe()
    answers, answer_end = os.pipe()
    pipes = f'exec "$@" 3<&{command_end} 4>&{answer_end}'
    command = [browser, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"]
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", pipes, "bash", *command], pass_fds=(command_end, answer_end), stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True, env=os.environ | {"HOME": str(folder)},
        )  # fmt: skip
    os.close(command_end)
    os.close(answer_end)
    try:
        yield Page(commands, answers)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(commands)
        os.close(answers)
