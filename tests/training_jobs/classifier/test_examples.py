"""Where labels come from, and sets that no classifier can learn from."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from jobkit import paths
from jobkit.bottle import FolderBottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.snapshot import Sample, write_snapshot
from nightshift_common.options.data import MAX_SIDE
from tests.training_jobs.classifier.support import LABELS, draw
from tests.training_jobs.pictures import bomb
from training_jobs.classifier.examples import (
    Example,
    Examples,
    check,
    from_folders,
    from_rotation,
    from_snapshot,
)


def test_a_folder_is_a_class(tmp_path: Path) -> None:
    draw(tmp_path, 20)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "red" / "notes.txt").write_text("no picture")
    found = from_folders(tmp_path, "colors", 0.25, MAX_SIDE)
    assert found.labels == LABELS
    assert len(found.train) + len(found.val) == 60
    assert 5 <= len(found.val) <= 25
    assert all(example.path.parent.name == LABELS[example.label] for example in (*found.train, *found.val))


def test_the_part_for_validation_is_chosen_by_content(tmp_path: Path) -> None:
    draw(tmp_path / "some", 12)
    small = from_folders(tmp_path / "some", "colors", 0.4, MAX_SIDE)
    shutil.copytree(tmp_path / "some", tmp_path / "more")
    copied = tmp_path / "more" / "red" / "a copy.png"
    shutil.copy(tmp_path / "some" / "red" / "0.png", copied)
    large = from_folders(tmp_path / "more", "colors", 0.4, MAX_SIDE)
    small_val, large_val = {e.key for e in small.val}, {e.key for e in large.val}
    assert large_val - small_val <= {"red/a copy.png"}
    assert ("red/a copy.png" in large_val) == ("red/0.png" in large_val)
    assert len(from_folders(tmp_path / "some", "colors", 0.9, MAX_SIDE).val) > len(small.val)


def test_a_class_with_one_picture_is_trained_on(tmp_path: Path) -> None:
    draw(tmp_path, 1)
    found = from_folders(tmp_path, "colors", 0.999, MAX_SIDE)
    assert found.counts == [1, 1, 1]


def test_a_picture_of_a_folder_that_is_too_large_is_left_out_undecoded_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draw(tmp_path, 10)
    (tmp_path / "red" / "bomb.png").write_bytes(bomb(50_000))
    for read in (from_folders, from_rotation):
        caplog.clear()
        found = read(tmp_path, "colors", 0.25, MAX_SIDE)
        assert len({example.key for example in (*found.train, *found.val)}) == 30
        assert "1 of " in caplog.text and "over 10000 pixels" in caplog.text and "bomb.png (50000)" in caplog.text
    with pytest.raises(DataValidationError, match="holds no pictures"):
        from_rotation(tmp_path, "colors", 0.25, 8)


def test_an_empty_class_folder_is_refused_by_name(tmp_path: Path) -> None:
    draw(tmp_path, 1)
    (tmp_path / "yellow").mkdir()
    with pytest.raises(DataValidationError, match="yellow"):
        from_folders(tmp_path, "colors", 0.2, MAX_SIDE)
    with pytest.raises(ConfigurationError, match="missing"):
        from_folders(tmp_path / "missing", "colors", 0.2, MAX_SIDE)


def test_pages_are_drawn_in_training_and_seen_from_all_sides_in_validation(tmp_path: Path) -> None:
    draw(tmp_path, 10)
    found = from_rotation(tmp_path, "pages", 0.3, MAX_SIDE)
    assert found.labels == ["0", "90", "180", "270"]
    assert {example.turns for example in found.train} == {None}
    assert len(found.val) % 4 == 0
    assert sorted(e.label for e in found.val[:4]) == [0, 1, 2, 3]
    assert all(example.turns == example.label for example in found.val)
    assert {e.key for e in found.train}.isdisjoint({e.key for e in found.val})
    check(found, 4)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataValidationError, match="holds no pictures"):
        from_rotation(tmp_path / "none", "pages", 0.3, MAX_SIDE)


def snapshot(bottle: FolderBottle, labels: dict[str, list[str]]) -> str:
    samples, number = [], 0
    for split, names in labels.items():
        for name in names:
            number += 1
            content = cv2.imencode(".png", np.full((20, 20, 3), number * 7, np.uint8))[1].tobytes()
            digest = hashlib.sha256(content).hexdigest()
            key = paths.picture(digest, ".png")
            bottle.write(key, content)
            samples.append(
                Sample(sha256=digest, path=key, label=name, split=split, width=20, height=20, split_group=digest,  # type: ignore[arg-type]
                       source=str(number))
            )  # fmt: skip
    return write_snapshot(bottle, "letters", samples, []).snapshot_id


def test_a_snapshot_gives_train_and_val_and_keeps_golden_back(tmp_path: Path) -> None:
    bottle = FolderBottle(tmp_path)
    identifier = snapshot(bottle, {"train": ["b", "a", "a"], "val": ["b"], "golden": ["a", "b"]})
    found = from_snapshot(bottle, "letters", identifier)
    assert found.labels == ["a", "b"]
    assert found.counts == [2, 1]
    assert [found.labels[e.label] for e in found.val] == ["b"]
    assert found.snapshot_id == identifier
    check(found, None)


def test_a_label_that_the_snapshot_does_not_list_is_refused(tmp_path: Path) -> None:
    bottle = FolderBottle(tmp_path)
    identifier = snapshot(bottle, {"train": ["a", "b"], "val": ["b"]})
    summary = paths.SnapshotPaths("letters", identifier).summary
    bottle.write(summary, bottle.read(summary).replace(b'"b"\n  ]', b'"c"\n  ]'))
    with pytest.raises(DataValidationError, match="pictures of b, which its labels do not list: a, c"):
        from_snapshot(bottle, "letters", identifier)


@pytest.mark.parametrize(
    ("labels", "train", "val", "classes", "error", "text"),
    [
        (["a"], [0], [0], None, DataValidationError, "one class only"),
        (["a", "b"], [0, 0], [0], None, DataValidationError, "no training pictures of b"),
        (["a", "b"], [0, 1], [], None, DataValidationError, "no validation pictures"),
        (["a", "b"], [0, 1], [0], 3, ConfigurationError, r"model\.n_classes is 3, but there are 2 labels"),
    ],
)
def test_a_set_that_cannot_be_learnt_from_is_refused(
    labels: list[str], train: list[int], val: list[int], classes: int | None, error: type[Exception], text: str
) -> None:
    def make(indices: list[int]) -> list[Example]:
        return [Example(Path("x.png"), index) for index in indices]

    with pytest.raises(error, match=text):
        check(Examples(labels, make(train), make(val), "letters"), classes)
