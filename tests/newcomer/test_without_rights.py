"""A user without rights: where the tests run as root, the stack is started, looked at and stopped by another."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from local import processes
from tests.newcomer.conftest import INSTALLS, Newcomer, make_clone, new_ports, plain_environment, stop

pytestmark = pytest.mark.slow

# In mounts of its own, which end with it: a folder that others cannot enter (root's home) is shown empty but for the
# interpreter in it. Arguments: that folder, the interpreter's, an empty one, the command.
SHOWS_INTERPRETER = """
set -e
mount --bind "$2" "$3"
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir -p "$2"
mount --bind "$3" "$2"
shift 3
exec "$@"
"""


def interpreter_shown(folder: Path) -> list[str]:
    """Return what to write before a command so that other users can run this Python, wherever it lies."""
    base = Path(sys.base_prefix)
    hidden = [path for path in (base, *base.parents) if not path.stat().st_mode & stat.S_IXOTH]
    if not hidden:
        return []
    arguments = map(str, (hidden[-1], base, folder / "interpreter"))
    return ["unshare", "--mount", "sh", "-c", SHOWS_INTERPRETER, "sh", *arguments]


@pytest.fixture
def nobody() -> Iterator[Newcomer]:
    """The user `nobody` with a clone of their own."""
    if os.geteuid() != 0:
        pytest.skip("the tests do not run as root, and so neither does anything else here")
    user = pwd.getpwnam("nobody")
    folder = Path(tempfile.mkdtemp(prefix="newcomer-", dir="/tmp"))  # pytest's own folders are root's alone
    folder.chmod(0o755)
    try:
        for name in ("home", "interpreter"):
            (folder / name).mkdir()
        # env, since setpriv itself finds a program with root's rights
        ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}"]
        who = [*interpreter_shown(folder), "setpriv", *ids, "--clear-groups", "--no-new-privs", "env"]
        found = Newcomer(make_clone(folder), plain_environment(folder / "home"), who)
        subprocess.run(["chown", "-R", "-h", f"{user.pw_uid}:{user.pw_gid}", str(folder)], check=True)
        python = str(found.clone / ".venv" / "services" / "bin" / "python")
        if (
            not INSTALLS
            and subprocess.run([*who, python, "-c", "import httpx"], capture_output=True, cwd="/").returncode
        ):
            pytest.skip(f"other users cannot enter this checkout's environments: {python}")
        yield found
        stop(found)
    finally:
        shutil.rmtree(folder)


def test_a_user_without_rights_has_the_stack(nobody: Newcomer) -> None:
    said = nobody.sees("make", "up", **new_ports())
    assert "everything is healthy" in said
    assert nobody.sees("./nightshift", "status").count("healthy") == 6
    running = processes.of_stack(nobody.settings.state)
    assert {process.username() for process in running} == {"nobody"}
    assert "everything is stopped" in nobody.sees("make", "down")
    assert processes.of_stack(nobody.settings.state) == []
    assert nobody.sees("./nightshift", "status", code=3).count("stopped") == 6
