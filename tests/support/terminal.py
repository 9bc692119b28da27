"""A command at a terminal, as a person has it: its output is a terminal's, and Ctrl-C is a key."""

from __future__ import annotations

import os
import re
import select
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import wait_for

CTRL_C = "\x03"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_TAKES_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """The person's side of a terminal in which one command runs."""

    def __init__(self, process: subprocess.Popen[bytes], side: int) -> None:
        self.process, self._side, self._shown = process, side, b""

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._side, keys.encode())

    def text(self) -> str:
        """Return all that was shown until now, without colors and movements of the cursor."""
        while select.select([self._side], [], [], 0)[0]:
            try:
                content = os.read(self._side, 65536)
            except OSError:  # the command and all that it started have closed their side
                break
            if not content:
                break
            self._shown += content
        return _ESCAPES.sub("", self._shown.decode(errors="replace")).replace("\r", "")

    def wait_for(self, text: str, seconds: float = 60.0) -> str:
        """Wait until a text is shown; return all that was."""

        def shown() -> bool:
            assert text in self.text() or self.process.poll() is None, f"it ended without {text!r}:\n{self.text()}"
            return text in self.text()

        wait_for(shown, repr(text), seconds)
        return self.text()

    def wait_for_end(self, seconds: float = 60.0) -> int:
        """Wait until the command has ended; return its exit code."""
        wait_for(lambda: self.text() is not None and self.process.poll() is not None, "the command's end", seconds)
        return self.process.returncode


@contextmanager
def terminal(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[Terminal]:
    """Run a command at a terminal of its own; the block's end kills it, if it still runs."""
    side, end = os.openpty()
    termios.tcsetwinsize(end, (60, 200))  # no line is folded
    process = subprocess.Popen(
        ["python3.11", "-c", _TAKES_TERMINAL, *command], cwd=folder, env=environment | {"TERM": "xterm"},
        stdin=end, stdout=end, stderr=end, start_new_session=True,
    )  # fmt: skip
    os.close(end)
    try:
        yield Terminal(process, side)
    finally:
        process.kill()
        process.wait()
        os.close(side)
