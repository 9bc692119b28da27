"""A Docker engine of a test's own, to kill and start again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.support.waiting import wait_for


class OwnEngine:
    """An engine without a network, on a socket below `folder`; its data lie there as well."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket = folder, folder / "docker.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def client(self) -> Any:
        """Return a client of it."""
        return docker.DockerClient(base_url=f"unix://{self.socket}")

    def start(self) -> None:
        """Start it and wait until it answers."""
        (self.folder / "docker.pid").unlink(missing_ok=True)
        (self.folder / "exec" / "containerd" / "containerd.pid").unlink(missing_ok=True)
        command = [
            # In a network of its own: without, it would remove the bridge of the machine's engine.
            "unshare", "--net", "dockerd", "--host", f"unix://{self.socket}", "--data-root", str(self.folder / "data"),
            "--exec-root", str(self.folder / "exec"), "--pidfile", str(self.folder / "docker.pid"),
            "--bridge", "none", "--iptables=false",
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        wait_for(self._answers, f"an engine: {self.folder / 'log'}", 60)

    def kill(self) -> None:
        """End it as a crash would: its containers run on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it and what it started, and let go of its mounts."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
        for number in _processes_of(self.folder):
            os.kill(number, signal.SIGKILL)
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith(str(self.folder))), reverse=True):
            subprocess.run(["umount", mount], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            return bool(self.client().ping())
        except (docker.errors.DockerException, OSError):
            return False


def _processes_of(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder) in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@contextmanager
def own_engine(image: str) -> Iterator[OwnEngine]:
    """Run an engine that has a copy of `image`, until the block ends."""
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("an engine of the test's own needs root and dockerd")
    home = Path("/var/tmp") / f"nightshift-engine-{os.getpid()}"  # a socket's path is short; /tmp may be in memory
    home.mkdir()
    engine = OwnEngine(home)
    try:
        engine.start()
        pipe = f"docker save {image} | docker --host unix://{engine.socket} load"
        subprocess.run(["sh", "-c", pipe], check=True, capture_output=True)
        yield engine
    finally:
        engine.close()
