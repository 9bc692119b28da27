"""Files that an option names, wherever they are."""

from __future__ import annotations

from pathlib import Path

from jobkit.bottle import Bottle, open_bottle
from jobkit.errors import DataValidationError


def local_file(where: str, bottle: Bottle) -> Path:
    """Return a local file with what is at `where`: a key in the bottle, `s3://bucket/key`, or a path, absolute or `./`.

    Raises:
        DataValidationError: it is not there.
    """
    if where.startswith("s3://"):
        root, _, name = where.rpartition("/")
        return open_bottle(root).local(name)
    if Path(where).is_absolute() or where.startswith("."):
        if not Path(where).is_file():
            raise DataValidationError(f"{where} is not a file on this worker")
        return Path(where)
    return bottle.local(where)
