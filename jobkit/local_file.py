"""Files that an option names, wherever they are."""

from __future__ import annotations

from pathlib import Path

from jobkit.bottle import Bottle, open_bottle
from jobkit.errors import DataValidationError


def local_file(where: str, bottle: Bottle | None = None) -> Path:
    """Return a local file with what is at `where`: a key in the bottle, `s3://bucket/key`, or a path, absolute or `./`.

    Args:
        where: the name of the file.
        bottle: where keys are looked up; by default the job's own, opened only if a key is what `where` is.

    Raises:
        DataValidationError: it is not there.
        ConfigurationError: a key, and no bottle is configured.
    """
    if where.startswith("s3://"):
        root, _, name = where.rpartition("/")
        return open_bottle(root).local(name)
    if Path(where).is_absolute() or where.startswith("."):
        if not Path(where).is_file():
            raise DataValidationError(f"{where} is not a file on this worker")
        return Path(where)
    return (bottle or open_bottle()).local(where)
