"""Unpacking an archive without trusting it: everything is checked before a byte is written."""

from __future__ import annotations

import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from jobkit.errors import DataValidationError
from jobkit.files import atomic_directory

MAX_ENTRIES = 20_000
MAX_BYTES = 64 << 30
RATIO_FROM_BYTES = 64 << 20  # small archives may be as repetitive as they like
MAX_RATIO = 100  # weights hardly shrink; deflate's own limit, which bombs use, is 1032


def unpack(archive: Path, target: Path, check: Callable[[Path], None]) -> None:
    """Unpack the zip `archive` to the new folder `target`, which appears whole and checked, or not at all.

    A single folder at the top of the archive that is named like `target` is taken off. `check` gets the unpacked folder
    before it is put in its place, and raises where it is not as it should be.

    Raises:
        DataValidationError: it is no zip, damaged, or holds what does not belong there; everything wrong is listed.
        FileExistsError: `target` is there already.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            if problems := _problems(entries, archive.stat().st_size):
                raise DataValidationError(f"{archive.name} is refused: " + "; ".join(problems[:10]))
            top = {PurePosixPath(entry.filename).parts[0] for entry in entries}
            strip = top == {target.name} and all("/" in entry.filename for entry in entries)
            with atomic_directory(target) as folder:
                for entry in entries:
                    parts = PurePosixPath(entry.filename).parts
                    path = folder.joinpath(*parts[1:] if strip else parts)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(entry) as source, path.open("xb") as output:
                        shutil.copyfileobj(source, output, 1 << 20)
                check(folder)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise DataValidationError(f"{archive.name} is damaged or no zip: {error}") from error


def _problems(entries: list[zipfile.ZipInfo], size: int) -> list[str]:
    if not entries:
        return ["it is empty"]
    if len(entries) > MAX_ENTRIES:
        return [f"it has {len(entries)} entries, at most {MAX_ENTRIES} are allowed"]
    total = sum(entry.file_size for entry in entries)
    problems = []
    if total > MAX_BYTES or (total > RATIO_FROM_BYTES and total > MAX_RATIO * size):
        problems.append(f"{size} bytes unpack to {total}")
    seen: set[str] = set()
    for entry in entries:
        name = entry.orig_filename  # `filename` is cut at a NUL character
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not name.isprintable():
            problems.append(f"{name!r} leads out of the folder")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            problems.append(f"{name!r} is a link or a special file")
        if entry.flag_bits & 0x1:
            problems.append(f"{name!r} is encrypted")
        if name.casefold() in seen:
            problems.append(f"{name!r} is there twice")
        seen.add(name.casefold())
    return problems
