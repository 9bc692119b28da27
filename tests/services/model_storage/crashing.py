"""The service as a process that kills itself at a given point: `python -m tests.services.model_storage.crashing POINT`.

The points are put around the service's own functions from outside, so the service has no code for them.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from services.model_storage import __main__ as service
from services.model_storage import triton
from services.model_storage.api import uploads
from services.model_storage.production import history, promotions
from services.model_storage.repository import archive, catalog, store


def die(*_: Any, **__: Any) -> None:
    """End at once, as by power cut or out-of-memory killer."""
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str) -> None:
    """Die instead of calling `owner.name`."""
    setattr(owner, name, die)


def after(owner: Any, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
    """Die when `owner.name` has returned, if `when` says so of its arguments."""
    original = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        if when(*arguments):
            die()
        return result

    setattr(owner, name, call)


UPLOAD = {
    "while it is received": lambda: after(uploads._Reader, "_write"),
    "before it is unpacked": lambda: before(catalog, "unpack"),
    "while it is unpacked": lambda: after(archive, "_extract"),
    "before the rename": lambda: before(store.FolderStore, "place"),
    "after the rename": lambda: after(store.FolderStore, "place"),
    "while the record is written": lambda: before(store.os, "link"),
    "after the record": lambda: after(store.FolderStore, "create"),
    "before the answer": lambda: after(catalog.Catalog, "publish"),
}
PROMOTION = {
    "before the configuration": lambda: before(promotions.Production, "_serve"),
    "after the configuration": lambda: after(store.FolderStore, "write"),
    "after the load": lambda: after(triton.Triton, "load"),
    "before the row": lambda: before(history.Change, "add"),
    "after the row": lambda: after(history.Change, "add"),
    "while a candidate is made": lambda: after(store.FolderStore, "link"),
}

if __name__ == "__main__":
    (UPLOAD | PROMOTION)[sys.argv[1]]()
    service.main()
