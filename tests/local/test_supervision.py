"""The stack's supervisor: a real supervisord, with parts that are small programs of these tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread

import pytest

from local import components, processes, stack
from local.components import Component
from local.settings import PREFERRED_PORTS, LocalStackError, Settings, port_variable
from local.supervision import Supervisor
from tests.support.servers import free_ports
from tests.support.waiting import wait_for

SERVES = "import pathlib, time; pathlib.Path({mark!r}).touch(); print('serving', flush=True); time.sleep(600)"
PART = """
import sys
from tests.local import test_supervision
test_supervision.run_part(sys.argv[-1])
"""


def parts_in(state: Path) -> list[Component]:
    """Two parts that leave a mark when they serve, and one that ends at once."""

    def serving(name: str, port: str) -> Component:
        mark = state / f"{name} serves"
        code = SERVES.format(mark=str(mark))
        return Component(name, (port,), [sys.executable, "-c", code], {"SECRET": "s3cret"}, mark.exists)

    ends = [sys.executable, "-c", "print('no such table'); raise SystemExit(3)"]
    return [
        serving("postgres", "postgres"), serving("mlflow", "mlflow"),
        Component("collect", ("collect",), ends, {}, lambda: False),
    ]  # fmt: skip


def use_parts(patch: pytest.MonkeyPatch | None, state: Path) -> None:
    makers = {part.name: (lambda _settings, part=part: part) for part in parts_in(state)}
    components._MAKERS.clear()
    components._MAKERS.update(makers)


def run_part(name: str) -> None:
    use_parts(None, Path(os.environ[processes.MARK]))
    stack.become(name)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    for name, port in zip(PREFERRED_PORTS, free_ports(len(PREFERRED_PORTS)), strict=True):
        monkeypatch.setenv(port_variable(name), str(port))
    before = dict(components._MAKERS)
    state = tmp_path / "a state"
    use_parts(monkeypatch, state)
    # What supervisord runs is `python -m local part NAME`; here it is the same with the parts of these tests.
    monkeypatch.setattr("local.supervision.PART_COMMAND", f'"{{python}}" "{tmp_path / "part.py"}" {{name}}')
    (tmp_path / "part.py").write_text(f"import sys; sys.path.insert(0, {str(Path.cwd())!r})\n{PART}")
    found = Settings(state)
    found.folder("logs")
    yield found
    components._MAKERS.clear()
    components._MAKERS.update(before)
    Supervisor(found).shutdown()
    processes.stop(lambda: processes.of_stack(state))


@pytest.fixture
def supervisor(settings: Settings) -> Supervisor:
    found = Supervisor(settings)
    found.start(components.all_components(settings))
    return found


def served(settings: Settings, name: str) -> Callable[[], bool]:
    return components.component(settings, name).healthy


def test_a_part_that_is_killed_is_started_again_and_status_says_so(settings: Settings, supervisor: Supervisor) -> None:
    part = components.component(settings, "mlflow")
    stack._start(settings, part, supervisor)
    (first,) = processes.of_stack(settings.state, "mlflow")
    (settings.state / "mlflow serves").unlink()
    said: list[str] = []
    done = Event()
    watching = Thread(target=stack.watch, args=(settings, said.append, done, 0.1))
    watching.start()
    wait_for(lambda: True, "the thread")
    os.kill(first.pid, signal.SIGKILL)
    wait_for(served(settings, "mlflow"), "the part to serve again")
    wait_for(lambda: bool(said), "a word about it")
    done.set()
    watching.join()
    (second,) = processes.of_stack(settings.state, "mlflow")
    assert second.pid != first.pid and not first.is_running(), "the first one is reaped"
    assert said[0].startswith("mlflow ended (terminated by SIGKILL) and is started again; its log:")
    (state,) = [state for name, state, _ in stack.status(settings) if name == "mlflow"]
    assert state.startswith("healthy (started again 1x, last at 20") and state.endswith(": terminated by SIGKILL)")


def test_a_part_that_ends_at_once_is_reported_with_the_end_of_its_log(
    settings: Settings, supervisor: Supervisor
) -> None:
    with pytest.raises(LocalStackError, match=r"collect ended \(exit status 3\)(.|\n)*no such table"):
        stack._start(settings, components.component(settings, "collect"), supervisor)
    wait_for(lambda: supervisor.states()["collect"] in ("STOPPED", "EXITED"), "the part to be left alone")


def test_no_secret_is_in_the_configuration_and_the_part_has_it(settings: Settings, supervisor: Supervisor) -> None:
    stack._start(settings, components.component(settings, "mlflow"), supervisor)
    assert "s3cret" not in (settings.state / "run" / "supervisord.conf").read_text()
    (process,) = processes.of_stack(settings.state, "mlflow")
    assert process.environ()["SECRET"] == "s3cret"


def test_down_keeps_what_was_running_before(settings: Settings, supervisor: Supervisor) -> None:
    for name in ("postgres", "mlflow"):
        stack._start(settings, components.component(settings, name), supervisor)
    said: list[str] = []
    stack.down(settings, said.append, keep=["postgres"])
    assert stack.running(settings) == ["postgres"] and supervisor.runs()
    assert said[-1] == "mlflow, collect is stopped; the rest was running before"
    stack.down(settings, said.append)
    assert processes.of_stack(settings.state) == [] and not supervisor.runs()
    assert said[-1] == "everything is stopped"


def test_a_stack_whose_supervisor_was_killed_says_so_and_is_stopped_all_the_same(
    settings: Settings, supervisor: Supervisor
) -> None:
    stack._start(settings, components.component(settings, "mlflow"), supervisor)
    for process in processes.of_stack(settings.state, "supervisor"):
        process.kill()
    wait_for(lambda: not supervisor.runs(), "the supervisor to be gone")
    assert stack.running(settings) == ["mlflow"]
    (state,) = [state for name, state, _ in stack.status(settings) if name == "mlflow"]
    assert state == "healthy, without a supervisor: make up"
    stack.down(settings, print)
    assert processes.of_stack(settings.state) == []


def test_later_commands_find_the_stack_without_the_variables_of_its_ports(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = settings.port("mlflow")
    settings.remember_ports()
    monkeypatch.delenv(port_variable("mlflow"))
    assert Settings(settings.state).port("mlflow") == port
    assert Settings(settings.state / "another").port("mlflow") == PREFERRED_PORTS["mlflow"]
    monkeypatch.setenv(port_variable("mlflow"), "5999")
    assert Settings(settings.state).port("mlflow") == 5999


def test_a_shell_with_another_folder_for_temporary_files_finds_the_supervisor(
    settings: Settings, supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert Supervisor(settings).runs()
