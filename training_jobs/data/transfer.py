"""Bring pictures into the bottle, each once: what is there already is known by an index."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, as_completed, wait

from pydantic import ValidationError

from jobkit import paths
from jobkit.bottle import Bottle
from jobkit.progress import Progress
from training_jobs.data.picture_inspection import Inspected, inspect, missing

logger = logging.getLogger("training_jobs.transfer")

THREADS = 8
SAVE_EVERY = 2000  # pictures; what an interrupted transfer has to fetch again at most


class NotThere(Exception):
    """The source has no such file, though it lists it."""


Fetch = Callable[[str], bytes]


def index_key(group: str) -> str:
    """Return where the index of a group's files is: one JSON object a line, one line a file of the source."""
    return f"meta/{paths.checked_name(group, 'group')}/pictures.jsonl"


def read_index(bottle: Bottle, group: str) -> dict[str, Inspected]:
    """Return what is known of the group's files, by source; a damaged line counts as unknown."""
    if not bottle.exists(index_key(group)):
        return {}
    known = {}
    for number, line in enumerate(bottle.read(index_key(group)).splitlines(), start=1):
        try:
            picture = Inspected.model_validate_json(line)
        except ValidationError:
            logger.warning("%s:%d is damaged; that picture is fetched again", index_key(group), number)
        else:
            known[picture.source] = picture
    return known


def transfer(
    bottle: Bottle, group: str, sources: Iterable[str], fetch: Fetch, max_side: int
) -> tuple[dict[str, Inspected], int]:
    """Fetch the files that are not known yet; return what is known of each of `sources`, and how many were fetched.

    A file that was damaged or missing last time is fetched again, since it may have been repaired; so is a picture that
    is gone from the bottle. What was fetched before a failure stays known.

    Raises:
        TransientError: the source or the bottle failed.
    """
    known = read_index(bottle, group)
    stored = set(bottle.keys("pictures")) if known else set()
    wanted = sorted(set(sources))
    unknown = [s for s in wanted if s not in known or not _complete(known[s], stored, max_side)]
    if unknown:
        _fetch_all(bottle, group, unknown, known, fetch, max_side)
    return {source: known[source] for source in wanted}, len(unknown)


def _complete(picture: Inspected, stored: set[str], max_side: int) -> bool:
    if picture.fault:
        return False
    if not picture.thumbnail:  # its header was enough to refuse it
        return max(picture.width, picture.height) > max_side
    return paths.picture(picture.sha256, picture.suffix) in stored


def _fetch_all(
    bottle: Bottle, group: str, sources: list[str], known: dict[str, Inspected], fetch: Fetch, max_side: int
) -> None:
    progress = Progress("transfer", len(sources), "pictures")
    with ThreadPoolExecutor(THREADS, thread_name_prefix="transfer") as pool:
        futures = [pool.submit(_fetch_one, bottle, source, fetch, max_side) for source in sources]
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                picture = future.result()
                known[picture.source] = picture
                progress.advance()
                if number % SAVE_EVERY == 0:
                    _save(bottle, group, known)
        finally:
            for future in futures:
                future.cancel()
            wait(futures, return_when=FIRST_EXCEPTION)
            _save(bottle, group, known)


def _save(bottle: Bottle, group: str, known: dict[str, Inspected]) -> None:
    lines = [known[source].model_dump_json() + "\n" for source in sorted(known)]
    bottle.write(index_key(group), "".join(lines))


def _fetch_one(bottle: Bottle, source: str, fetch: Fetch, max_side: int) -> Inspected:
    try:
        content = fetch(source)
    except NotThere as error:
        return missing(source, str(error))
    picture = inspect(source, content, max_side)
    if picture.thumbnail:  # what is refused for good is not kept
        bottle.write(paths.picture(picture.sha256, picture.suffix), content)
    return picture
