"""State of the collect server: picture files in a folder, and an SQLite index beside them.

A picture's file is complete before its row is there, and a picset's rows appear in one transaction, so a reader
never sees half a picset. Several processes may use one folder at a time (the server, an importer).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

Mode = Literal["PREPARING", "CHECKING", "VALIDATED", "TRAINED"]
MODES: tuple[Mode, ...] = get_args(Mode)
_NAMESPACE = uuid.UUID("5a3b9f0e-6d3c-4e57-9a55-2f1f3ad6c001")  # of the guids that importers give

_SCHEMA = """
CREATE TABLE IF NOT EXISTS picsets (
    guid TEXT PRIMARY KEY, "group" TEXT NOT NULL, category TEXT NOT NULL, mode TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS picsets_group ON picsets ("group", mode);
CREATE TABLE IF NOT EXISTS pictures (
    filepath TEXT PRIMARY KEY, guid TEXT NOT NULL REFERENCES picsets (guid), width INTEGER, height INTEGER
);
CREATE INDEX IF NOT EXISTS pictures_guid ON pictures (guid);
"""


class UnknownPicset(KeyError):
    """A guid that no picset has."""


@dataclass(frozen=True)
class Picset:
    """Pictures of one category that were collected together."""

    guid: str
    group: str
    category: str
    mode: Mode = "VALIDATED"


@dataclass(frozen=True)
class Picture:
    """A picture file; `filepath` is relative to the file host, width and height are pixels (None: not known)."""

    filepath: str
    guid: str
    width: int | None
    height: int | None


def picset_guid(group: str, category: str, name: str) -> str:
    """Return the guid of an imported picset: equal names give equal guids, so that importing again adds nothing."""
    return str(uuid.uuid5(_NAMESPACE, f"{group}/{category}/{name}"))


class Store:
    """A folder with `pictures/` and `index.sqlite`."""

    def __init__(self, directory: Path) -> None:
        self.pictures = directory / "pictures"
        self.pictures.mkdir(parents=True, exist_ok=True)
        self._index = directory / "index.sqlite"
        with self._connect() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(_SCHEMA)

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._index, timeout=30)) as connection, connection:
            yield connection

    def write_picture(self, filepath: str, content: bytes) -> None:
        """Write a picture file atomically, unless it is there with this size.

        Raises:
            ValueError: `filepath` leads out of the folder.
        """
        relative = PurePosixPath(filepath)
        if relative.is_absolute() or ".." in relative.parts:
            raise ValueError(f"{filepath!r} is not a path inside the picture folder")
        path = self.pictures / relative
        if path.is_file() and path.stat().st_size == len(content):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".", dir=path.parent)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
        temporary = Path(name)
        temporary.chmod(0o644)
        temporary.replace(path)

    def add(self, picsets: Iterable[Picset], pictures: Iterable[Picture]) -> int:
        """Add picsets and pictures to the index in one transaction; return how many pictures are new.

        What is there already is left as it is, its mode included.
        """
        with self._connect() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO picsets VALUES (?, ?, ?, ?)",
                [(p.guid, p.group, p.category, p.mode) for p in picsets],
            )
            before = connection.total_changes
            connection.executemany(
                "INSERT OR IGNORE INTO pictures VALUES (?, ?, ?, ?)",
                [(p.filepath, p.guid, p.width, p.height) for p in pictures],
            )
            return connection.total_changes - before

    def groups(self) -> list[str]:
        """Return the names of all groups."""
        with self._connect() as connection:
            return [row[0] for row in connection.execute('SELECT DISTINCT "group" FROM picsets ORDER BY 1')]

    def by_category(self, groups: list[str], categories: list[str], modes: Sequence[Mode]) -> dict[str, list[Picture]]:
        """Return the pictures of `groups` by category; an empty `categories` or `modes` means all."""
        query = "SELECT category, filepath, guid, width, height FROM picsets JOIN pictures USING (guid) WHERE "
        query += f'"group" IN ({_marks(groups)})'
        values = list(groups)
        for column, wanted in (("category", categories), ("mode", modes)):
            if wanted:
                query += f" AND {column} IN ({_marks(wanted)})"
                values += wanted
        found: dict[str, list[Picture]] = {}
        with self._connect() as connection:
            for category, *picture in connection.execute(query + " ORDER BY category, filepath", values):
                found.setdefault(category, []).append(Picture(*picture))
        return found

    def picsets(self, guids: list[str]) -> list[tuple[Picset, list[Picture]]]:
        """Return the picsets of `guids` with their pictures, in the order asked for.

        Raises:
            UnknownPicset: one of them does not exist.
        """
        found = []
        with self._connect() as connection:
            for guid in guids:
                picset = connection.execute(
                    'SELECT guid, "group", category, mode FROM picsets WHERE guid = ?', (guid,)
                ).fetchone()
                if picset is None:
                    raise UnknownPicset(guid)
                rows = connection.execute(
                    "SELECT filepath, guid, width, height FROM pictures WHERE guid = ? ORDER BY filepath", (guid,)
                )
                found.append((Picset(*picset), [Picture(*row) for row in rows]))
        return found

    def move(self, guids: list[str], mode: Mode) -> None:
        """Move picsets to `mode`, all or none.

        Raises:
            UnknownPicset: one of them does not exist.
        """
        with self._connect() as connection:
            for guid in guids:
                if connection.execute("UPDATE picsets SET mode = ? WHERE guid = ?", (mode, guid)).rowcount == 0:
                    raise UnknownPicset(guid)


def _marks(values: Sequence[str]) -> str:
    return ", ".join("?" * len(values))
