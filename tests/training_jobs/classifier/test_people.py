"""People from PostgreSQL: one example per person, cut out by its mask."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from jobkit import database
from jobkit.errors import DataValidationError
from tests.training_jobs.classifier.support import config, examples
from training_jobs.classifier.data import Pictures
from training_jobs.classifier.examples import Example, Examples, Person
from training_jobs.classifier.person_crops import one_example_per_person

TRIANGLE = [[0.0, 0.0, 0.5, 0.0, 0.0, 1.0]]


@pytest.fixture
def found(tmp_path: Path) -> Examples:
    made = examples(tmp_path, train=6, val=3)
    named = [replace(e, key=f"pictures/{e.key}") for e in (*made.train, *made.val)]
    return replace(made, train=named[:6], val=named[6:])


def store(key: str, segments: Any, status: str = "unchecked") -> None:
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO nightshift.pictures (path, model_version, status, segments) VALUES (%s, 'v1', %s, %s)",
            (key, status, json.dumps(segments)),
        )


def person(box: list[float], segments: list[list[float]] = TRIANGLE) -> dict[str, Any]:
    return {"cls": "female", "conf": 0.97, "bbox": box, "segments": segments}


def test_a_picture_becomes_one_example_per_person(database_url: str, found: Examples) -> None:
    first, second, third, *rest = found.train
    store(first.key, {"0": person([0, 0, 12, 20]), "1": person([12, 0, 24, 20])}, "approved")
    store(second.key.removeprefix("pictures/"), {"0": person([1, 2, 3, 4])})
    store(third.key, {"0": person([0, 0, 12, 20])}, "rejected")
    changed = one_example_per_person(found)
    assert [e.key for e in changed.train] == [first.key, first.key, second.key, *[e.key for e in rest]]
    assert [e.person.box if e.person else None for e in changed.train[:4]] == [
        (0, 0, 12, 20), (12, 0, 24, 20), (1, 2, 3, 4), None,
    ]  # fmt: skip
    assert changed.val == found.val


def test_nobody_in_a_picture_means_the_whole_picture(database_url: str, found: Examples) -> None:
    store(found.train[0].key, {})
    assert one_example_per_person(found).train == found.train


@pytest.mark.parametrize(
    ("segment", "text"),
    [
        ({"conf": 1.0}, "KeyError"),
        ({"bbox": [1, 2, 3], "segments": []}, "ValueError"),
        ({"bbox": [10, 10, 5, 5], "segments": []}, "the box is empty"),
        ({"bbox": [0, 0, 5, 5], "segments": [[0.1, 0.2, 0.3]]}, "fewer than 3 points"),
    ],
)
def test_a_row_that_does_not_hold_people_is_refused_with_its_path(
    database_url: str, found: Examples, segment: dict[str, Any], text: str
) -> None:
    store(found.val[0].key, {"0": segment})
    with pytest.raises(DataValidationError, match=f"{found.val[0].key}, segment 0.*{text}"):
        one_example_per_person(found)


def test_a_person_is_cut_out_by_the_mask(tmp_path: Path) -> None:
    picture = np.full((40, 60, 3), 200, np.uint8)
    path = tmp_path / "people.png"
    cv2.imwrite(str(path), picture)
    # The right half of the picture; its left part, x in 0.5..0.75, is the person.
    example = Example(path, 0, person=Person((30, 0, 60, 40), ((0.5, 0.0, 0.75, 0.0, 0.75, 1.0, 0.5, 1.0),)))
    shown, _ = Pictures(config(dataset__image_size=40), [example], training=True).picture(0, 0)
    assert shown.shape == (40, 40, 3)  # the crop is 30 wide and 40 high: 5 columns of padding on each side
    assert (shown[:, :5] == 0).all() and (shown[:, 5:20] == 200).all() and (shown[:, 22:] == 0).all()
    outside = Example(path, 0, person=Person((100, 0, 120, 40), ()))
    with pytest.raises(DataValidationError, match=r"people\.png: the box of a person"):
        Pictures(config(), [outside], training=True).picture(0, 0)


def test_the_cache_keeps_masks(tmp_path: Path) -> None:
    path = tmp_path / "people.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    some = [Example(path, 0, person=Person((5, 5, 50, 35), ((0.1, 0.1, 0.8, 0.2, 0.3, 0.9),))), Example(path, 1)]
    plain, cached = (Pictures(config(), some, training=True) for _ in range(2))
    assert cached.cache()
    for index in range(2):
        assert np.array_equal(plain.picture(0, index)[0], cached.picture(0, index)[0])
