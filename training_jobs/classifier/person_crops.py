"""People in pictures, from PostgreSQL: one example per person instead of one per picture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jobkit import database
from jobkit.errors import DataValidationError
from training_jobs.classifier.examples import Example, Examples, Person

logger = logging.getLogger("training_jobs.train_classifier")


def one_example_per_person(examples: Examples) -> Examples:
    """Return the examples with each picture replaced by the people found in it.

    A picture that segmentation has not seen, or in which it found nobody, is used whole; a rejected one is left out.

    Raises:
        DataValidationError: a row of `nightshift.pictures` does not hold what it should.
        TransientError: the database does not answer.
    """
    rows = _rows([example.key for example in (*examples.train, *examples.val)])
    changed = replace(examples, train=_people(examples.train, rows), val=_people(examples.val, rows))
    rejected = sum(status == "rejected" for status, _ in rows.values())
    people = sum(example.person is not None for example in (*changed.train, *changed.val))
    logger.info("people: %d in %d segmented pictures; %d rejected pictures are left out", people, len(rows), rejected)
    return changed


def _rows(keys: list[str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return status and segments of the pictures that have a row; a path may lack the leading `pictures/`."""
    wanted = {key.removeprefix("pictures/"): key for key in keys}
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT path, status, segments FROM nightshift.pictures WHERE path = ANY(%s) OR path = ANY(%s)",
            (list(wanted), list(wanted.values())),
        )
        found = cursor.fetchall()
    return {wanted[path.removeprefix("pictures/")]: (status, segments or {}) for path, status, segments in found}


def _people(examples: Sequence[Example], rows: dict[str, tuple[str, dict[str, Any]]]) -> list[Example]:
    result = []
    for example in examples:
        status, segments = rows.get(example.key, ("unchecked", {}))
        if status == "rejected":
            continue
        people = [_person(example.key, name, segment) for name, segment in sorted(segments.items())]
        result += [replace(example, person=person) for person in people] or [example]
    return result


def _person(key: str, name: str, segment: Any) -> Person:
    try:
        x_min, y_min, x_max, y_max = (float(value) for value in segment["bbox"])
        polygons = tuple(tuple(float(value) for value in polygon) for polygon in segment["segments"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataValidationError(
            f"nightshift.pictures, path {key}, segment {name}: {error!r}; valid: "
            '{"bbox": [x_min, y_min, x_max, y_max], "segments": [[x, y, …], …]}'
        ) from error
    if not (x_min < x_max and y_min < y_max) or any(len(polygon) % 2 or len(polygon) < 6 for polygon in polygons):
        raise DataValidationError(
            f"nightshift.pictures, path {key}, segment {name}: the box is empty (it is x_min, y_min, x_max, y_max), "
            "or a polygon has fewer than 3 points"
        )
    return Person((x_min, y_min, x_max, y_max), polygons)
