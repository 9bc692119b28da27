"""Fill `training/weights/` from an archive, and see that it is what its checksums say."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from pydantic import Field

from jobkit import job
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.files import sha256_of
from jobkit.local_file import local_file
from jobkit.unpack import unpack

logger = logging.getLogger("conversion_jobs.fetch_weights")
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


class Arguments(job.Arguments):
    """Unpack an archive of weights into a folder; a folder that is complete already is left as it is."""

    archive: str = Field(description="a zip: a file, a key in the bottle, or s3://bucket/key")
    target: Path = Field(Path("training/weights"), description="the folder to fill")
    checksums: Path = Field(description="names and SHA-256 of all files, in the form that sha256sum writes")


class Result(job.Result):
    """What is there now."""

    target: Path
    files: int
    was_there: bool


def run(arguments: Arguments, context: job.Context) -> Result:
    """Unpack unless the folder is complete; check every name and checksum."""
    wanted = read_checksums(arguments.checksums)
    target = arguments.target.absolute()
    if target.is_dir() and any(target.iterdir()):
        if problems := differences(target, wanted):
            raise DataValidationError(
                f"{target} is not what {arguments.checksums} says, move it away: {'; '.join(problems)}"
            )
        logger.info("%s is complete: %d files", target, len(wanted))
        return Result(target=target, files=len(wanted), was_there=True)
    if target.is_dir():
        target.rmdir()

    def check(folder: Path) -> None:
        if problems := differences(folder, wanted):
            raise DataValidationError(
                f"{arguments.archive} is not what {arguments.checksums} says: {'; '.join(problems)}"
            )

    archive = local_file(arguments.archive)
    unpack(archive, target, check)
    logger.info("%s: %d files", target, len(wanted))
    return Result(target=target, files=len(wanted), was_there=False)


def read_checksums(path: Path) -> dict[str, str]:
    """Return name -> SHA-256 of a file that `sha256sum` wrote.

    Raises:
        ConfigurationError: it is not there, empty, or a line is none of its lines.
    """
    if not path.is_file():
        raise ConfigurationError(f"{path} is not there: make it by `sha256sum` of the files, from within their folder")
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        parts = _LINE.fullmatch(line.strip())
        if parts is None:
            raise ConfigurationError(f"{path}:{number} is no line of sha256sum: {line!r}")
        found[parts[2].removeprefix("./")] = parts[1].lower()
    if not found:
        raise ConfigurationError(f"{path} names no file")
    return found


def differences(folder: Path, wanted: dict[str, str]) -> list[str]:
    """Return everything in which `folder` differs from the checksums."""
    present = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    problems = [f"{name} is missing" for name in wanted if name not in present]
    problems += [f"{name} is not listed" for name in sorted(present) if name not in wanted]
    for name, path in sorted(present.items()):
        if name in wanted and (actual := sha256_of(path)) != wanted[name]:
            problems.append(f"{name} is {actual}, not {wanted[name]}")
    return problems


if __name__ == "__main__":
    job.main(Arguments, run)
