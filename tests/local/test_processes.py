import os
import signal
import sys
from pathlib import Path

import psutil

from local import processes
from tests.support.waiting import wait_for

# A server that starts a child in a session of its own and then ignores SIGTERM: the worst kind.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""


def test_stopping_ends_a_server_that_ignores_the_signal_and_the_child_that_left_its_session(tmp_path: Path) -> None:
    processes.start("server", [sys.executable, "-c", STUBBORN], tmp_path, {})
    wait_for(lambda: len(processes.of_stack(tmp_path)) == 2, "2 processes")
    found = processes.of_stack(tmp_path)
    processes.stop(lambda: processes.of_stack(tmp_path), signal.SIGTERM, patience=0.3)
    assert processes.of_stack(tmp_path) == []
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in found)


def test_an_orphan_is_found_after_its_parent_was_killed(tmp_path: Path) -> None:
    leader = processes.start("server", [sys.executable, "-c", STUBBORN], tmp_path, {})
    wait_for(lambda: len(processes.of_stack(tmp_path)) == 2, "2 processes")
    leader.kill()
    wait_for(lambda: len(processes.of_stack(tmp_path)) == 1, "1 processes")
    processes.stop(lambda: processes.of_stack(tmp_path))
    assert processes.of_stack(tmp_path) == []


def test_stacks_with_other_state_folders_and_other_components_are_left_alone(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    mine = processes.start("server", sleep, tmp_path / "a", {})
    other = processes.start("server", sleep, tmp_path / "b", {})
    neighbor = processes.start("another", sleep, tmp_path / "a", {})
    try:
        wait_for(lambda: len(processes.of_stack(tmp_path / "a")) == 2, "two processes")
        processes.stop(lambda: processes.of_stack(tmp_path / "a", "server"))
        assert [p.pid for p in processes.of_stack(tmp_path / "a")] == [neighbor.pid]
        assert [p.pid for p in processes.of_stack(tmp_path / "b")] == [other.pid]
        assert mine.pid not in [p.pid for p in processes.of_stack(tmp_path / "a")]
    finally:
        for state in ("a", "b"):
            processes.stop(lambda state=state: processes.of_stack(tmp_path / state))


def test_a_component_can_be_swept_without_its_jobs(tmp_path: Path) -> None:
    job = {processes.JOB: str(tmp_path / "job")}
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    running = processes.start("airflow", sleep, tmp_path, job)
    try:
        wait_for(lambda: [p.pid for p in processes.of_stack(tmp_path)] == [running.pid], "the job")
        assert processes.of_stack(tmp_path, "airflow", with_jobs=False) == []
    finally:
        processes.stop(lambda: processes.of_stack(tmp_path))


def test_output_is_appended_to_the_component_s_log(tmp_path: Path) -> None:
    for word in ("first", "second"):
        process = processes.start("server", [sys.executable, "-c", f"print({word!r})"], tmp_path, {})
        os.waitpid(process.pid, 0)
    assert (tmp_path / "logs" / "server.log").read_text() == "first\nsecond\n"
