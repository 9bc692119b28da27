"""Starts, stops and describes the whole stack on one machine."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from threading import Event
from typing import NoReturn

import psutil

from local import airflow, components, postgres, processes
from local.components import Component
from local.settings import HOST, PREFERRED_PORTS, LocalStackError, Settings, port_variable
from local.supervision import Supervisor

START_SECONDS = 120.0
PORT_SECONDS = 3.0  # a process that was killed may keep its port until the kernel has cleared it away


def up(settings: Settings, say: Callable[[str], None]) -> None:
    """Start what is not running and healthy already; return when everything is healthy.

    Raises:
        LocalStackError: a port is taken by a stranger, or a part does not become healthy; the message says what to do.
    """
    with _one_at_a_time(settings):
        settings.remember_ports()
        parts = components.all_components(settings)
        started = time.monotonic()
        database, others = parts[0], parts[1:]
        supervisor = Supervisor(settings)
        is_supervised = supervisor.runs()
        todo = [part for part in parts if not (is_supervised and _runs(settings, part))]
        if not todo:
            say("everything is up already")
            return
        _end(settings, supervisor, todo)
        for part in todo:
            _check_ports(settings, part)
        if not is_supervised:
            supervisor.start(parts)
        if database in todo:
            postgres.initialize(settings.state / "postgres", settings.secrets["postgres"], say)
            _start(settings, database, supervisor)
        components.prepare_databases(settings)
        interrupted = Event()
        with ThreadPoolExecutor(len(parts)) as pool:
            digits = pool.submit(components.load_digits, settings)
            starts = [
                pool.submit(_start, settings, part, supervisor, say, interrupted) for part in others if part in todo
            ]
            try:
                for done in as_completed([digits, *starts]):
                    done.result()
            except BaseException:  # Ctrl-C, or one part failed: there is nothing to wait for any more
                interrupted.set()
                raise
        airflow.make_pools(settings)
        say(f"everything is healthy after {time.monotonic() - started:.0f} s")


def down(settings: Settings, say: Callable[[str], None], keep: Sequence[str] = ()) -> None:
    """Stop every process of the stack, jobs included; return when none is left.

    Args:
        settings: which stack.
        say: is told what is waited for.
        keep: parts to leave alone, because they were running before; then jobs go on, too.
    """
    with _one_at_a_time(settings):
        if not processes.of_stack(settings.state):
            say("nothing is running")
            return
        supervisor = Supervisor(settings)
        parts = [part for part in components.all_components(settings) if part.name not in keep]
        database, others = [[p for p in parts if (p.name == "postgres") is first] for first in (True, False)]
        for group in (others, database):  # the database last: the others write to it as they stop
            _end(settings, supervisor, group, say, with_jobs=not keep)
        if keep:
            say(f"{', '.join(part.name for part in parts) or 'nothing'} is stopped; the rest was running before")
            return
        supervisor.shutdown()
        processes.stop(lambda: processes.of_stack(settings.state))
        say("everything is stopped")


def running(settings: Settings) -> list[str]:
    """Return the names of the parts that have processes."""
    names = [part.name for part in components.all_components(settings)]
    return [name for name in names if processes.of_stack(settings.state, name, with_jobs=False)]


def status(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Yield name, state and address of each part; the state says, too, whether the supervisor had to start it again."""
    supervisor = Supervisor(settings)
    states, (ended, _) = supervisor.states(), supervisor.ended()
    for part in components.all_components(settings):
        alive = bool(processes.of_stack(settings.state, part.name, with_jobs=False))
        state = ("healthy" if part.healthy() else "not healthy") if alive else "stopped"
        if alive and not states:
            state += ", without a supervisor: make up"
        elif states.get(part.name) in ("BACKOFF", "FATAL"):
            state = f"ends as soon as it is started: {settings.state / 'logs' / part.name}.log"
        if states and (times := [one for one in ended if one.name == part.name]):
            state += f" (started again {len(times)}x, last at {times[-1].at}: {times[-1].how})"
        yield part.name, state, f"{HOST}:{settings.port(part.ports[0])}"


def watch(settings: Settings, say: Callable[[str], None], until: Event, seconds: float = 2.0) -> None:
    """Say which parts end by themselves and are started again, until the event."""
    supervisor = Supervisor(settings)
    _, read = supervisor.ended()
    gone = False
    while not until.wait(seconds):
        ended, read = supervisor.ended(read)
        for one in ended:
            say(f"{one.name} ended ({one.how}) and is started again; its log: {settings.state}/logs/{one.name}.log")
        if not supervisor.runs() and not gone and not until.is_set():
            gone = True
            say("the supervisor of the stack is gone: what ends now is not started again until make up")


def become(name: str) -> NoReturn:
    """Replace this process by a part, once nothing is left of an earlier start of it: what the supervisor runs."""
    for variable in map(port_variable, PREFERRED_PORTS):
        os.environ.pop(variable, None)  # those of the last `up` count, and not of the one that started the supervisor
    settings = Settings(Path(os.environ[processes.MARK]))
    processes.stop(lambda: processes.of_stack(settings.state, name, with_jobs=False), patience=2.0)
    part = components.component(settings, name)
    processes.write_down(name, os.getpid(), settings.state)
    environment = {**os.environ, **part.environment, **processes.marks(settings.state, name)}
    command = [*part.command, *part.new_arguments()]
    os.execvpe(command[0], command, environment)


def _runs(settings: Settings, part: Component) -> bool:
    return bool(processes.of_stack(settings.state, part.name, with_jobs=False)) and part.healthy()


def _end(
    settings: Settings,
    supervisor: Supervisor,
    parts: Sequence[Component],
    say: Callable[[str], None] = lambda _: None,
    with_jobs: bool = False,
) -> None:
    """End parts and what is left of earlier ones: orphans, a part that hangs. Jobs may go on: a retry adopts them."""

    def left(jobs: bool = False) -> dict[str, list[psutil.Process]]:
        found = {part.name: processes.of_stack(settings.state, part.name, jobs) for part in parts}
        return {name: found[name] for name in found if found[name]}

    supervised = supervisor.states()
    for part in parts:
        if part.name in supervised:
            supervisor.stop_part(part.name)
        else:
            _ask(part, left().get(part.name, []))
    wait = processes.Patience(max([part.patience for part in parts], default=0.0))
    told = ""
    while (waited_for := ", ".join(left())) and not wait.is_over():
        if wait.passed > 1.0 and waited_for != told:
            told = waited_for
            say(f"waiting for {waited_for}")
        wait.a_little()
    processes.stop(lambda: [one for found in left(with_jobs).values() for one in found], patience=2.0)


def _ask(part: Component, found: list[psutil.Process]) -> None:
    """Ask a part's first process alone to end, so that it can end its children in order."""
    for process in found:
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == process.pid:
                process.send_signal(part.stop_signal)


def _check_ports(settings: Settings, part: Component) -> None:
    for name in part.ports:
        port = settings.port(name)
        deadline = time.monotonic() + PORT_SECONDS
        while not _is_free(port):
            if time.monotonic() > deadline:
                other = port + 1000 if port < 64000 else port - 1000
                raise LocalStackError(
                    f"port {port}, wanted by {part.name}, is taken{_holder(port)}. "
                    f"Stop that process, or choose another port: {port_variable(name)}={other} make run"
                )
            time.sleep(0.1)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _holder(port: int) -> str:
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listens and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


def _start(
    settings: Settings,
    part: Component,
    supervisor: Supervisor,
    say: Callable[[str], None] | None = None,
    interrupted: Event | None = None,
) -> None:
    _, read = supervisor.ended()
    supervisor.start_part(part.name)
    wait = processes.Patience(START_SECONDS)
    while not part.healthy():
        if interrupted and interrupted.is_set():
            return
        ended = [one.how for one in supervisor.ended(read)[0] if one.name == part.name]
        if ended or wait.is_over():
            supervisor.stop_part(part.name)
            what = f"ended ({ended[-1]})" if ended else f"is not healthy after {wait.passed:.0f} s"
            log = settings.state / "logs" / f"{part.name}.log"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.exists() else ""
            raise LocalStackError(f"{part.name} {what}. The end of its log, {log}:\n{tail}")
        wait.a_little()
    if say:
        say(f"{part.name} is healthy ({wait.passed:.0f} s): {HOST}:{settings.port(part.ports[0])}")


@contextmanager
def _one_at_a_time(settings: Settings) -> Iterator[None]:
    path = settings.folder("run") / "lock"
    with path.open("w") as handle:
        try:
            flock(handle, LOCK_EX | LOCK_NB)
        except OSError as error:
            raise LocalStackError(
                f"another command starts or stops this stack just now ({path}); try again when it is done"
            ) from error
        yield
