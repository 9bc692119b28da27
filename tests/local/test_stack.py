import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from local import stack
from local.components import Component
from local.settings import HOST, LocalStackError, Settings, port_variable
from tests.support.servers import free_ports

ROOT = Path(__file__).resolve().parents[2]


def component(command: list[str]) -> Component:
    return Component(name="collect", ports=("collect",), command=command, environment={}, healthy=lambda: False)


def test_a_taken_port_is_named_with_its_holder_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as stranger:
        stranger.bind((HOST, 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        monkeypatch.setenv(port_variable("collect"), str(port))
        with pytest.raises(LocalStackError) as caught:
            stack._check_ports(Settings(tmp_path), component(["true"]))
    message = str(caught.value)
    assert f"port {port}" in message
    assert f"(pid {os.getpid()})" in message
    assert "NIGHTSHIFT_COLLECT_PORT=" in message


def test_two_commands_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    with stack._one_at_a_time(settings), pytest.raises(LocalStackError, match="another command"):
        stack.down(settings, print)


def test_down_without_a_stack_says_so_and_succeeds(tmp_path: Path) -> None:
    environment = {**os.environ, "NIGHTSHIFT_STATE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "local", "down"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, "nothing is running")


def test_status_names_every_part_and_exits_3_when_not_all_is_healthy(tmp_path: Path) -> None:
    ports = dict(zip(("airflow", "mlflow", "model_storage", "collect"), free_ports(4), strict=True))
    environment = {**os.environ, "NIGHTSHIFT_STATE": str(tmp_path)}
    environment |= {port_variable(name): str(port) for name, port in ports.items()}
    done = subprocess.run(
        [sys.executable, "-m", "local", "status"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stdout + done.stderr
    for name in ("postgres", "triton", "collect", "model_storage", "mlflow", "airflow"):
        assert f"{name} " in done.stdout
    assert done.stdout.count("stopped") == 6
