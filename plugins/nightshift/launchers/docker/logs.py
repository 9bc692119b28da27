"""Follows the log of a container through dropped connections and restarts of the engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import requests
import urllib3
from docker.errors import APIError

logger = logging.getLogger(__name__)
CONNECTION_ERRORS = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)
RECONNECT_SECONDS = 0.5


def follow(api: Any, name: str, is_running: Callable[[], bool]) -> Iterator[str]:
    """Yield each line once, from the first one until the container has ended, whatever happens to the connection.

    `is_running` is asked whenever a stream ends; it raises where the engine does not come back.
    """
    place = _Place()
    rest = b""
    while True:
        running = is_running()  # before the read: what was written until then is read
        try:
            frames = api.logs(name, stream=True, follow=True, timestamps=True, since=place.since())
            for frame in frames:
                stamp, _, content = frame.partition(b" ")
                if not place.is_new(stamp):
                    continue
                rest += content  # the engine cuts lines of more than 16 KiB
                if rest.endswith(b"\n"):
                    yield rest.decode(errors="replace").rstrip("\r\n")
                    rest = b""
        except (*CONNECTION_ERRORS, APIError) as error:
            logger.warning("lost the log of %s (%s); connecting again", name, error)
            time.sleep(RECONNECT_SECONDS)
            continue
        if not running:
            if rest:
                yield rest.decode(errors="replace").rstrip("\r")
            return


class _Place:
    """How far the log was read: lines have nanosecond timestamps, a request for the rest starts at a whole second."""

    def __init__(self) -> None:
        self.stamp, self.lines = b"", 0  # the last timestamp, and how many lines with it were read
        self.repeated = 0

    def since(self) -> int | None:
        self.repeated = 0
        if not self.stamp:
            return None
        return int(datetime.fromisoformat(self.stamp.decode()[:19] + "+00:00").timestamp())

    def is_new(self, stamp: bytes) -> bool:
        if stamp > self.stamp:
            self.stamp, self.lines, self.repeated = stamp, 1, 1
            return True
        if stamp < self.stamp:
            return False
        self.repeated += 1
        if self.repeated > self.lines:
            self.lines = self.repeated
            return True
        return False
