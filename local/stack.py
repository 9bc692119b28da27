"""Starts, stops and describes the whole stack on one machine."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from threading import Event

import psutil

from local import airflow, components, postgres, processes
from local.components import Component
from local.settings import HOST, LocalStackError, Settings, port_variable
from nightshift_common.patience import patience

START_SECONDS = 120.0
PORT_SECONDS = 3.0  # a process that was killed may keep its port until the kernel has cleared it away


def up(settings: Settings, say: Callable[[str], None]) -> None:
    """Start what is not running and healthy already; return when everything is healthy.

    Raises:
        LocalStackError: a port is taken by a stranger, or a part does not become healthy; the message says what to do.
    """
    with _one_at_a_time(settings):
        parts = components.all_components(settings)
        started = time.monotonic()
        database, others = parts[0], parts[1:]
        todo = [part for part in parts if not _runs(settings, part)]
        if not todo:
            say("everything is up already")
            return
        for part in todo:
            _sweep(settings, part)
            _check_ports(settings, part)
        if database in todo:
            postgres.initialize(settings.state / "postgres", settings.secrets["postgres"], say)
            _start(settings, components.all_components(settings)[0])  # where it is was decided only now
        components.prepare_databases(settings)
        interrupted = Event()
        with ThreadPoolExecutor(len(parts)) as pool:
            digits = pool.submit(components.load_digits, settings)
            starts = [pool.submit(_start, settings, part, say, interrupted) for part in others if part in todo]
            try:
                for done in as_completed([digits, *starts]):
                    done.result()
            except BaseException:  # Ctrl-C, or one part failed: there is nothing to wait for any more
                interrupted.set()
                raise
        airflow.make_pools(settings)
        say(f"everything is healthy after {time.monotonic() - started:.0f} s")


def down(settings: Settings, say: Callable[[str], None]) -> None:
    """Stop every process of the stack, jobs included; return when none is left."""
    with _one_at_a_time(settings):
        if not processes.of_stack(settings.state):
            say("nothing is running")
            return
        parts = components.all_components(settings)
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(lambda part: _sweep(settings, part, with_jobs=True), parts[1:]))
        _sweep(settings, parts[0])  # the database last: the others write to it as they stop
        processes.stop(lambda: processes.of_stack(settings.state))
        say("everything is stopped")


def status(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Yield name, state and address of each part."""
    for part in components.all_components(settings):
        alive = bool(processes.of_stack(settings.state, part.name, with_jobs=False))
        state = ("healthy" if part.healthy() else "not healthy") if alive else "stopped"
        yield part.name, state, f"{HOST}:{settings.port(part.ports[0])}"


def _runs(settings: Settings, part: Component) -> bool:
    return bool(processes.of_stack(settings.state, part.name, with_jobs=False)) and part.healthy()


def _sweep(settings: Settings, part: Component, with_jobs: bool = False) -> None:
    """End what is left of a part: its orphans, a part that hangs. Jobs may go on: their retry adopts them."""

    def leader() -> list[psutil.Process]:
        found = processes.of_stack(settings.state, part.name, with_jobs)
        return [process for process in found if _is_leader(process)]

    with suppress(psutil.NoSuchProcess):
        leaders = leader()
        for process in leaders:  # asked first and alone, so that it can end its children in order
            process.send_signal(part.stop_signal)
        psutil.wait_procs(leaders, timeout=part.patience)
    processes.stop(lambda: processes.of_stack(settings.state, part.name, with_jobs), patience=2.0)


def _is_leader(process: psutil.Process) -> bool:
    with suppress(OSError):
        return os.getsid(process.pid) == process.pid and not processes.is_job(process)
    return False


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
    say: Callable[[str], None] | None = None,
    interrupted: Event | None = None,
) -> None:
    started = time.monotonic()
    process = processes.start(part.name, [*part.command, *part.new_arguments()], settings.state, part.environment)
    log = settings.state / "logs" / f"{part.name}.log"
    while not part.healthy():
        if interrupted and interrupted.is_set():
            return
        ended = not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        if ended or time.monotonic() - started > patience(START_SECONDS):
            what = "ended" if ended else f"is not healthy after {time.monotonic() - started:.0f} s"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise LocalStackError(f"{part.name} {what}. The end of its log, {log}:\n{tail}")
        time.sleep(0.1)
    if say:
        say(f"{part.name} is healthy ({time.monotonic() - started:.0f} s): {HOST}:{settings.port(part.ports[0])}")


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
