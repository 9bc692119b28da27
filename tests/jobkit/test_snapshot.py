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
from jobkit.snapshot import Refused, Sample, read_snapshot, read_summary, snapshot_id, write_snapshot


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
