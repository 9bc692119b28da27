"""The supervisor of the local stack, supervisord: it starts the parts, reaps them and starts them again when they end.

Its configuration holds no secret: a part is started by `python -m local part <name>`, which takes up what was left of
an earlier start, and then becomes the part, with the environment and the arguments of `local.components`.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sys
import xmlrpc.client
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from supervisor.xmlrpc import SupervisorTransport

from local import processes
from local.components import Component
from local.settings import ROOT, LocalStackError, Settings

NAME = "supervisor"
START_SECONDS = 20.0
BACK_OFF = 100  # starts of a part that ends at once, each a second later than the one before; then it is given up
EXITED = re.compile(r"^(\S+ \S+) \w+ exited: (\S+) \((.+); (?:not )?expected\)$", re.MULTILINE)

CONFIGURATION = """\
[unix_http_server]
file = {socket}
chmod = 0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisord]
nodaemon = true
silent = true
logfile = {log}
logfile_maxbytes = 5MB
logfile_backups = 1
pidfile = {pid}
"""
PART_COMMAND = '"{python}" -m local part {name}'
PROGRAM = """
[program:{name}]
command = {command}
directory = {root}
environment = {mark}="{state}",{component}="{name}"
autostart = false
autorestart = true
startsecs = 1
startretries = {retries}
stopsignal = {signal}
stopwaitsecs = {patience:.0f}
redirect_stderr = true
stdout_logfile = {logs}/{name}.log
stdout_logfile_maxbytes = 50MB
stdout_logfile_backups = 1
"""


@dataclass(frozen=True)
class Ended:
    """A part that ended without being asked to, as the supervisor's log has it: when, and by which code or signal."""

    name: str
    at: str
    how: str


class Supervisor:
    """The supervisor of one stack."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.log = settings.state / "logs" / f"{NAME}.log"

    @property
    def socket(self) -> Path:
        """Where it listens: a path of a socket has 107 characters at most, which those of state folders may exceed."""
        digest = hashlib.sha256(str(self.settings.state).encode()).hexdigest()[:12]
        # Not TMPDIR, which another shell of the same user may have elsewhere.
        return Path("/tmp") / f"nightshift-{os.getuid()}-{digest}" / "supervisor"

    def runs(self) -> bool:
        """Whether it answers."""
        with suppress(OSError, xmlrpc.client.Error):
            return bool(self._call().getState())
        return False

    def start(self, parts: list[Component]) -> None:
        """Start it, with nothing started yet by it.

        Raises:
            LocalStackError: it does not answer; the message ends with its log.
        """
        folder = self.socket.parent
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
            raise LocalStackError(f"{folder} is not a folder of this user alone: remove it")
        path = self.settings.folder("run") / "supervisord.conf"
        path.write_text(self.configuration(parts))
        command = [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(path)]
        process = processes.start(NAME, command, self.settings.state, {})
        wait = processes.Patience(START_SECONDS)
        while not self.runs():
            if not process.is_running() or process.status() == "zombie" or wait.is_over():
                raise LocalStackError(f"the supervisor of the stack does not start:\n{self._log_end()}")
            wait.a_little()

    def configuration(self, parts: list[Component]) -> str:
        """Return the text of its configuration; a percent sign is written twice there."""
        state, logs = self.settings.state, self.settings.folder("logs")
        pid = self.settings.folder("run") / "supervisord.pid"
        values = {"socket": self.socket, "log": self.log, "pid": pid, "python": sys.executable, "root": ROOT}
        values |= {"state": state, "logs": logs, "mark": processes.MARK, "component": processes.COMPONENT}
        escaped: dict[str, Any] = {key: str(value).replace("%", "%%") for key, value in values.items()}
        text = CONFIGURATION.format(**escaped)
        for part in parts:
            text += PROGRAM.format(
                **escaped, name=part.name, command=PART_COMMAND.format(**escaped, name=part.name), retries=BACK_OFF,
                patience=part.patience, signal=signal.Signals(part.stop_signal).name.removeprefix("SIG"),
            )  # fmt: skip
        return text

    def start_part(self, name: str) -> None:
        """Start a part; return at once."""
        self._call().startProcess(name, False)

    def stop_part(self, name: str) -> None:
        """Ask a part to end, and to stay ended; return at once."""
        with suppress(xmlrpc.client.Fault):  # it does not run
            self._call().stopProcess(name, False)

    def states(self) -> dict[str, str]:
        """Return each part's state as supervisord names it: RUNNING, BACKOFF, STOPPED, …; nothing where it is away."""
        with suppress(OSError, xmlrpc.client.Error):
            found = cast(list[dict[str, Any]], self._call().getAllProcessInfo())
            return {str(info["name"]): str(info["statename"]) for info in found}
        return {}

    def shutdown(self) -> None:
        """End it, with all that it still runs; nothing happens where it is away."""
        with suppress(OSError, xmlrpc.client.Error):
            self._call().shutdown()

    def ended(self, since: int = 0) -> tuple[list[Ended], int]:
        """Return the parts that ended by themselves, from `since` bytes of its log on, and how far it was read."""
        content = self.log.read_bytes() if self.log.exists() else b""
        content = content[: content.rfind(b"\n") + 1]
        if since > len(content):  # it was rotated
            since = 0
        text = content[since:].decode(errors="replace")
        return [Ended(m[2], m[1].partition(",")[0], m[3]) for m in EXITED.finditer(text)], len(content)

    def _call(self) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self.socket}")
        return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor

    def _log_end(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:]) if self.log.exists() else "(no log)"
