"""Ctrl-C in the middle of a run: everything that was started is gone afterwards."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from local import postgres, processes
from local.settings import PREFERRED_PORTS, ROOT, port_variable
from tests.e2e.support import wait_for
from tests.support.servers import free_ports


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)], ids=["ctrl-c", "closed terminal"]
)
def test_an_interrupted_run_leaves_no_process_behind(tmp_path: Path, number: int) -> None:
    ports = zip(PREFERRED_PORTS, free_ports(len(PREFERRED_PORTS)), strict=True)
    environment = {**os.environ, "NIGHTSHIFT_STATE": str(tmp_path), "TERM": "xterm"}
    environment |= {port_variable(name): str(port) for name, port in ports}
    terminal, end = pty.openpty()
    run = subprocess.Popen(
        [sys.executable, "-m", "local", "run"], cwd=ROOT, env=environment, stdin=end, stdout=end, stderr=end,
        start_new_session=True,
    )  # fmt: skip
    os.close(end)
    try:
        wait_for(lambda: len(processes.of_stack(tmp_path, "airflow")) > 3, "Airflow's processes")
        os.killpg(run.pid, number)
        wait_for(lambda: _drain(terminal) or run.poll() is not None, "the command to end", seconds=60)
        assert processes.of_stack(tmp_path) == []
    finally:
        run.kill()
        processes.stop(lambda: processes.of_stack(tmp_path))
        postgres.remove(tmp_path / "postgres")
        os.close(terminal)


def _drain(terminal: int) -> bool:
    """Read what the command printed, so that it never waits for its reader; return False."""
    import select

    while select.select([terminal], [], [], 0)[0]:
        try:
            if not os.read(terminal, 65536):
                break
        except OSError:  # the other end is closed
            break
    return False
