"""Archives that jobs are given: nothing in them is trusted, and a folder appears whole and checked, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

from jobkit.errors import DataValidationError
from jobkit.files import atomic_directory
from nightshift_common.archive import ArchiveRefused, Rules, copy_entry, files_in, opened

RULES = Rules(max_entries=20_000, max_bytes=64 << 30, flat=False)


@contextmanager
def open_archive(archive: Path, rules: Rules, name: str) -> Iterator[ZipFile]:
    """Yield the open zip `archive`, whose entries may be unpacked under their names; errors call it `name`.

    Raises:
        DataValidationError: it is no zip, damaged, or breaks the rules; also for an entry that is read in the block.
    """
    try:
        with opened(archive, rules) as found:
            yield found
    except ArchiveRefused as error:
        raise DataValidationError(f"{name} {error}") from error


def unpack(archive: Path, target: Path, check: Callable[[Path], None]) -> None:
    """Unpack the zip `archive` to the new folder `target`, which appears whole and checked, or not at all.

    A single folder at the top of the archive that is named like `target` is taken off. `check` gets the unpacked folder
    before it is put in its place, and raises where it is not as it should be.

    Raises:
        DataValidationError: it is no zip, damaged, or holds what does not belong there; everything wrong is listed.
        FileExistsError: `target` is there already.
    """
    with open_archive(archive, RULES, archive.name) as found:
        paths = {entry: PurePosixPath(entry.filename) for entry in files_in(found)}
        if not paths:
            raise DataValidationError(f"{archive.name} is refused: it holds folders only")
        strip = all(len(path.parts) > 1 and path.parts[0] == target.name for path in paths.values())
        with atomic_directory(target) as folder:
            for entry, inside in paths.items():
                path = folder.joinpath(*inside.parts[1 if strip else 0 :])
                path.parent.mkdir(parents=True, exist_ok=True)
                with found.open(entry) as source:
                    copy_entry(source, entry, path, len)
            check(folder)
