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
from datetime import UTC, datetime
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
CREATE TABLE IF NOT EXISTS imports (
    id INTEGER PRIMARY KEY AUTOINCREMENT, "group" TEXT NOT NULL, source TEXT NOT NULL, at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS imported (
    filepath TEXT PRIMARY KEY REFERENCES pictures (filepath), import_id INTEGER NOT NULL REFERENCES imports (id)
);
CREATE INDEX IF NOT EXISTS imported_by ON imported (import_id);
"""


class UnknownPicset(KeyError):
    """A guid that no picset has."""


class UnknownImport(KeyError):
    """A number that no import has, or of one that was undone."""


@dataclass(frozen=True)
class Import:
    """One call that added pictures; `pictures` is how many of them are still there."""

    id: int
    group: str
    source: str
    at: str
    pictures: int


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

    def record_import(self, group: str, source: str, filepaths: Iterable[str]) -> int:
        """Write down which pictures came together, so that they can be taken back; return the import's number."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._connect() as connection:
            values = (group, source, now)
            number = connection.execute('INSERT INTO imports ("group", source, at) VALUES (?, ?, ?)', values).lastrowid
            rows = [(filepath, number) for filepath in filepaths]
            connection.executemany("INSERT OR IGNORE INTO imported VALUES (?, ?)", rows)
        return int(number or 0)

    def imports(self) -> list[Import]:
        """Return what was imported, in its order."""
        query = (
            'SELECT id, "group", source, at, count(filepath) FROM imports LEFT JOIN imported ON id = import_id '
            "GROUP BY id ORDER BY id"
        )
        with self._connect() as connection:
            return [Import(*row) for row in connection.execute(query)]

    def undo_import(self, number: int) -> int:
        """Take back the pictures that an import added, and picsets that are empty then; return how many.

        Raises:
            UnknownImport: there is no such import.
        """
        with self._connect() as connection:
            found = "SELECT filepath FROM imported WHERE import_id = ?"
            paths = [row[0] for row in connection.execute(found, (number,))]
            if connection.execute("DELETE FROM imports WHERE id = ?", (number,)).rowcount == 0:
                raise UnknownImport(number)
            connection.execute("DELETE FROM imported WHERE import_id = ?", (number,))
            connection.executemany("DELETE FROM pictures WHERE filepath = ?", [(path,) for path in paths])
            connection.execute("DELETE FROM picsets WHERE guid NOT IN (SELECT guid FROM pictures)")
        self.remove_files(paths)  # after their rows: a file without a row is never listed
        return len(paths)

    def remove_files(self, filepaths: Iterable[str]) -> None:
        """Remove picture files that have no row."""
        for filepath in filepaths:
            (self.pictures / filepath).unlink(missing_ok=True)

    def known(self, filepaths: Iterable[str]) -> set[str]:
        """Return those of `filepaths` that are there already."""
        with self._connect() as connection:
            query = "SELECT filepath FROM pictures WHERE filepath = ?"
            return {path for path in filepaths if connection.execute(query, (path,)).fetchone()}

    def counts(self, group: str) -> dict[str, int]:
        """Return how many pictures of a group each category has."""
        query = (
            'SELECT category, count(*) FROM picsets JOIN pictures USING (guid) WHERE "group" = ? GROUP BY 1 ORDER BY 1'
        )
        with self._connect() as connection:
            return dict(connection.execute(query, (group,)).fetchall())

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
