"""Snapshots: content-addressed, immutable, refused when damaged."""

from __future__ import annotations

import hashlib
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobkit.bottle import FolderBottle
from jobkit.errors import DataValidationError
from jobkit.snapshot import AnnotatedObject, Refused, Sample, read_snapshot, read_summary, snapshot_id, write_snapshot


def sample(number: int, label: str = "ant", split: str = "train", **other: object) -> Sample:
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    values = {"sha256": digest, "path": f"pictures/{digest[:2]}/{digest}.png", "label": label, "split": split}
    return Sample.model_validate(
        {**values, "width": 32, "height": 32, "split_group": digest, "source": f"{number}.png", **other}
    )


SAMPLES = [sample(n, "ant" if n % 2 else "bee", ("train", "val", "golden")[n % 3]) for n in range(12)]


@pytest.fixture
def bottle(tmp_path) -> FolderBottle:
    return FolderBottle(tmp_path)


def test_a_snapshot_reads_back_as_it_was_written(bottle: FolderBottle) -> None:
    refused = [Refused(source="x.png", reason="corrupt", detail="torn")]
    summary = write_snapshot(bottle, "insects", SAMPLES, refused)
    snapshot = read_snapshot(bottle, "insects", summary.snapshot_id)
    assert sorted(s.source for s in snapshot.samples) == sorted(s.source for s in SAMPLES)
    assert snapshot.summary == summary
    assert (summary.labels, summary.pictures, summary.refused) == (["ant", "bee"], 12, {"corrupt": 1})
    assert sum(sum(labels.values()) for labels in summary.counts.values()) == 12
    assert {s.split for s in snapshot.split("golden")} == {"golden"}
    assert snapshot.label_index() == {"ant": 0, "bee": 1}


@given(st.randoms())
def test_the_id_does_not_depend_on_order_names_or_sources(shuffle: random.Random) -> None:
    shuffled = [s.model_copy(update={"source": f"other-{i}", "path": "pictures/x"}) for i, s in enumerate(SAMPLES)]
    shuffle.shuffle(shuffled)
    assert snapshot_id(shuffled) == snapshot_id(SAMPLES)


def test_the_id_of_labeled_pictures_is_what_it_was_before_there_were_objects() -> None:
    assert snapshot_id(SAMPLES) == "0fa9870b511e18b1"  # made by the code of that time


BOXES = [
    AnnotatedObject(label="ant", box=(1, 2, 3, 4)),
    AnnotatedObject(label="bee", box=(5.5, 6, 7, 8), polygons=((5.5, 6, 12.5, 6, 12.5, 14),)),
    AnnotatedObject(label="ant", box=(0, 0, 30, 30), ignore=True),
]
ANNOTATED = [
    sample(n, "", ("train", "val", "golden")[n % 3], objects=BOXES[: 1 + n % 3] if n < 9 else []) for n in range(12)
]


def test_a_snapshot_with_objects_reads_back_and_counts_them(bottle: FolderBottle) -> None:
    summary = write_snapshot(bottle, "insects", ANNOTATED, [])
    snapshot = read_snapshot(bottle, "insects", summary.snapshot_id)
    assert sorted(snapshot.samples, key=lambda s: s.source) == sorted(ANNOTATED, key=lambda s: s.source)
    assert summary.labels == ["ant", "bee"]
    assert summary.counts == {"train": {"ant": 3}, "val": {"ant": 3, "bee": 3}, "golden": {"ant": 3, "bee": 3}}
    assert [s.labels for s in ANNOTATED[:3]] == [["ant"], ["ant", "bee"], ["ant", "bee"]]


@pytest.mark.parametrize(
    "change",
    [
        {"label": "bee"},
        {"box": (1, 2, 3, 4.01)},
        {"ignore": True},
        {"polygons": ((1, 2, 4, 2, 4, 6),)},
        None,
    ],
)
def test_the_id_changes_with_every_object_but_not_with_their_order(change: dict[str, object] | None) -> None:
    first, second, *rest = ANNOTATED
    turned = second.model_copy(update={"objects": tuple(BOXES[1::-1])})
    assert snapshot_id([first, turned, *rest]) == snapshot_id(ANNOTATED)
    objects = [] if change is None else [first.objects[0].model_copy(update=change)]
    assert snapshot_id([first.model_copy(update={"objects": tuple(objects)}), second, *rest]) != snapshot_id(ANNOTATED)


@pytest.mark.parametrize("change", [{"label": "wasp"}, {"split": "golden"}, {"sha256": "0" * 64}])
def test_the_id_changes_with_what_a_model_would_see(change: dict[str, str]) -> None:
    changed = [SAMPLES[0].model_copy(update=change), *SAMPLES[1:]]
    assert snapshot_id(changed) != snapshot_id(SAMPLES)
    assert snapshot_id(SAMPLES[1:]) != snapshot_id(SAMPLES)


def test_writing_it_again_changes_nothing(bottle: FolderBottle) -> None:
    first = write_snapshot(bottle, "insects", SAMPLES, [])
    before = {key: bottle.path(key).stat().st_mtime_ns for key in bottle.keys("snapshots")}
    assert write_snapshot(bottle, "insects", list(reversed(SAMPLES)), []) == first
    assert {key: bottle.path(key).stat().st_mtime_ns for key in bottle.keys("snapshots")} == before


def test_a_snapshot_that_was_only_half_written_is_written_again(bottle: FolderBottle) -> None:
    summary = write_snapshot(bottle, "insects", SAMPLES, [])
    folder = f"snapshots/insects/{summary.snapshot_id}"
    bottle.delete(f"{folder}/summary.json")
    bottle.write(f"{folder}/manifest.jsonl", "half")
    with pytest.raises(DataValidationError, match="there is no snapshot"):
        read_snapshot(bottle, "insects", summary.snapshot_id)
    write_snapshot(bottle, "insects", SAMPLES, [])
    assert len(read_snapshot(bottle, "insects", summary.snapshot_id).samples) == 12


def test_an_unknown_snapshot_is_refused_with_those_there_are(bottle: FolderBottle) -> None:
    summary = write_snapshot(bottle, "insects", SAMPLES, [])
    with pytest.raises(DataValidationError, match=summary.snapshot_id):
        read_summary(bottle, "insects", "0123456789abcdef")


def test_a_manifest_that_was_changed_is_refused(bottle: FolderBottle) -> None:
    summary = write_snapshot(bottle, "insects", SAMPLES, [])
    key = f"snapshots/insects/{summary.snapshot_id}/manifest.jsonl"
    lines = bottle.read(key).decode().splitlines()
    bottle.write(key, "\n".join([json.dumps(json.loads(lines[0]) | {"label": "wasp"}), *lines[1:]]) + "\n")
    with pytest.raises(DataValidationError, match="was changed"):
        read_snapshot(bottle, "insects", summary.snapshot_id)
    bottle.write(key, "\n".join([*lines[:3], lines[3][:40]]))
    with pytest.raises(DataValidationError, match=r"manifest\.jsonl:4 is damaged"):
        read_snapshot(bottle, "insects", summary.snapshot_id)
