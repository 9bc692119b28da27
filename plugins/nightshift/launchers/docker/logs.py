"""Follows the log of a container through dropped connections and restarts of the engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import requests
import urllib3
from docker.errors import APIError, NotFound

from nightshift.launchers.log_place import LogPlace

logger = logging.getLogger(__name__)
CONNECTION_ERRORS = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)
RECONNECT_SECONDS = 0.5


def follow(api: Any, name: str, is_running: Callable[[], bool]) -> Iterator[str]:
    """Yield each line once, from the first one until the container has ended, whatever happens to the connection.

    `is_running` is asked whenever a stream ends; it raises where the engine does not come back.
    """
    place = LogPlace()
    rest = b""
    while True:
        running = is_running()  # before the read: what was written until then is read
        try:
            since = place.since()
            frames = api.logs(name, stream=True, follow=True, timestamps=True, since=since and int(since.timestamp()))
            for frame in frames:
                stamp, _, content = frame.partition(b" ")
                if not place.is_new(stamp):
                    continue
                rest += content  # the engine cuts lines of more than 16 KiB
                if rest.endswith(b"\n"):
                    yield rest.decode(errors="replace").rstrip("\r\n")
                    rest = b""
        except NotFound:  # it was removed
            return
        except (*CONNECTION_ERRORS, APIError) as error:
            logger.warning("lost the log of %s (%s); connecting again", name, error)
            time.sleep(RECONNECT_SECONDS)
            continue
        if not running:
            if rest:
                yield rest.decode(errors="replace").rstrip("\r")
            return
