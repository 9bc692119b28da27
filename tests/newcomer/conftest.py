"""A newcomer: a fresh clone in a folder with a space, commands as a person types them, a stack of its own.

The environments are those of this checkout, linked into the clone; with `NIGHTSHIFT_NEWCOMER_INSTALLS=1` the newcomer
installs them, which takes minutes.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from local import processes
from local.settings import PREFERRED_PORTS, Settings, port_variable
from nightshift_common.patience import patience
from tests.support.servers import free_ports
from tests.support.terminal import CTRL_C, terminal

CHECKOUT = Path(__file__).resolve().parents[2]
INSTALLS = bool(os.environ.get("NIGHTSHIFT_NEWCOMER_INSTALLS"))
COMMAND_SECONDS = 240  # of a quiet machine
INSTALLATION_SECONDS = 900
CURRENT = "from local import bootstrap as b; print(all(b.is_current(n, False) for n in ('services', 'airflow', 'jobs', 'triton')))"  # noqa: E501


@dataclass(frozen=True)
class Newcomer:
    """Somebody with a clone: where it is, and as whom and with which variables they type."""

    clone: Path
    environment: dict[str, str]
    who: list[str] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        """The clone's stack, on the ports that it remembers."""
        return Settings(self.clone / ".nightshift")

    def command(self, *command: str) -> list[str]:
        """Return a command as this user runs it."""
        return [*self.who, *command]

    def types(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone, its output and errors together."""
        return subprocess.run(
            self.command(*command), cwd=self.clone, env=self.environment | variables, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=patience(COMMAND_SECONDS) + (INSTALLATION_SECONDS if INSTALLS else 0),
        )  # fmt: skip

    def sees(self, *command: str, code: int = 0, **variables: str) -> str:
        """Run a command, which ends with this exit code and without a traceback; return what it says."""
        done = self.types(*command, **variables)
        assert done.returncode == code, f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout}"
        assert "Traceback" not in done.stdout, done.stdout
        return done.stdout

    def states(self) -> dict[str, str]:
        """Return what `make status` says of each part."""
        lines = self.types("make", "--silent", "status").stdout.splitlines()
        rows = [line.strip().split(None, 1) for line in lines if not line.startswith("make: ")]
        return {row[0]: row[1] for row in rows if len(row) == 2}

    def serves(self, name: str) -> bool:
        """Whether `make status` calls a part healthy."""
        return self.states().get(name, "").startswith("healthy")


def new_ports() -> dict[str, str]:
    """Return variables that put a stack on free ports."""
    ports = free_ports(len(PREFERRED_PORTS))
    return {port_variable(name): str(port) for name, port in zip(PREFERRED_PORTS, ports, strict=True)}


def plain_environment(home: Path) -> dict[str, str]:
    """Return a new user's variables: nothing of Nightshift, of make, or of the environment that the tests run in."""
    ours = ("NIGHTSHIFT_", "MAKE", "MFLAGS", "PYTEST", "VIRTUAL_ENV", "PYTHON", "OMP_", "AIRFLOW", "MLFLOW")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {"HOME": str(home)}


def make_clone(folder: Path) -> Path:
    """Clone what is committed here into a folder with a space, with the environments linked or to be installed."""
    clone = folder / "my projects" / "night shift"
    subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(clone)], check=True)
    if INSTALLS:
        return clone
    (clone / ".venv").symlink_to((CHECKOUT / ".venv").resolve())
    current = subprocess.run(["python3.11", "-c", CURRENT], cwd=clone, capture_output=True, text=True, check=True)
    if current.stdout.strip() != "True":  # the clone would install into the checkout's
        pytest.skip("the environments are not those of the committed requirements: commit them, run make test-all")
    return clone


@dataclass(frozen=True)
class FirstRun:
    """What a newcomer saw of the first `make run`, and what was left of it."""

    text: str
    states: dict[str, str]
    after_ctrl_c: str
    code: int
    left: list[psutil.Process]


def stop(newcomer: Newcomer) -> None:
    """End a newcomer's stack, whatever came of it, and remove what it left outside of the clone."""
    newcomer.types("./nightshift", "clean")
    processes.stop(lambda: processes.of_stack(newcomer.settings.state))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("newcomer")


@pytest.fixture(scope="session")
def newcomer(folder: Path) -> Iterator[Newcomer]:
    """Somebody new, whose stack is not started yet."""
    (folder / "home").mkdir()
    found = Newcomer(make_clone(folder), plain_environment(folder / "home"))
    yield found
    stop(found)


@pytest.fixture(scope="session")
def first_run(newcomer: Newcomer) -> FirstRun:
    """`make run` at a terminal in the fresh clone, until it has told everything, and a Ctrl-C after that."""
    environment = newcomer.environment | new_ports()
    with terminal(newcomer.command("make", "run"), newcomer.clone, environment) as shown:
        text = shown.wait_for("The stack stays up until Ctrl-C.", COMMAND_SECONDS + INSTALLATION_SECONDS * INSTALLS)
        were_healthy = newcomer.states()
        shown.press(CTRL_C)
        code = shown.wait_for_end(COMMAND_SECONDS)
        after = shown.text().removeprefix(text)
    return FirstRun(text, were_healthy, after, code, processes.of_stack(newcomer.settings.state))


@pytest.fixture(scope="session")
def up(newcomer: Newcomer, first_run: FirstRun) -> Newcomer:
    """The newcomer with a stack that runs and a model in it, on the ports that the first run was told."""
    assert "everything is healthy" in newcomer.sees("make", "up")
    return newcomer


@pytest.fixture(scope="session")
def digit(up: Newcomer) -> Path:
    """One of the pictures of digits that the stack brings along."""
    collected = sorted((up.settings.state / "collect").rglob("*.png"))
    return Path(shutil.copy(collected[0], up.clone / "7.png"))
