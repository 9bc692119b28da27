"""`pull_annotations` from real files: COCO JSON and pictures, in a folder, in the bottle and in S3."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobkit import database, job
from jobkit.bottle import FolderBottle, open_bottle
from jobkit.errors import DataValidationError
from jobkit.snapshot import AnnotatedObject, Refused, Snapshot, read_snapshot
from training_jobs import pull_annotations
from training_jobs.data.coco import inside

RACCOON = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "raccoon"
WIDTH, HEIGHT = 64, 48


def drawing(seed: int, **options: Any) -> bytes:
    """A picture of random blobs, WIDTH x HEIGHT pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(buffer, "JPEG", **options)
    return buffer.getvalue()


class Coco:
    """A COCO file and its pictures, to be spoiled."""

    def __init__(self, pictures: int = 60) -> None:
        self.files = {f"{n}.jpg": drawing(n) for n in range(pictures)}
        self.images: list[Any] = [
            {"id": n, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in range(pictures)
        ]
        self.categories: list[Any] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        self.annotations: list[Any] = []
        for n in range(pictures):
            self.add(n, [1 + n % 7, 2, 30, 20], 1 + n % 2)

    def add(self, image: Any, box: Any, category: Any = 1, **more: Any) -> None:
        entry = {"id": len(self.annotations) + 1, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
        self.annotations.append({**entry, **more})

    def write(self, folder: Path) -> str:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / "images" / name).write_bytes(content)
        lists = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        (folder / "annotations.json").write_text(json.dumps(lists))
        return str(folder / "annotations.json")


@pytest.fixture
def coco() -> Coco:
    return Coco()


def pull(context: job.Context, annotations: str, **options: Any) -> pull_annotations.Result:
    options = {"images": f"{annotations.rpartition('/')[0]}/images", **options}
    arguments = pull_annotations.Arguments(pipeline="p", group="pets", annotations=annotations, **options)
    return pull_annotations.run(arguments, context)


def refusals(bottle: FolderBottle) -> dict[str, str]:
    lines = bottle.read("meta/pets/refused.jsonl").splitlines()
    return {r.source.rpartition("/")[2]: r.reason for r in map(Refused.model_validate_json, lines)}


def by_name(snapshot: Snapshot) -> dict[str, tuple[AnnotatedObject, ...]]:
    return {s.source.rpartition("/")[2]: s.objects or () for s in snapshot.samples}


def test_a_pull_makes_a_snapshot_with_the_objects_of_the_file(
    coco: Coco, context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    coco.add(3, [10.5, 4, 20, 30.25], 2, segmentation=[[10.5, 4, 30.5, 4, 30.5, 34.25]])
    coco.add(3, [0, 0, 64, 48], 1, iscrowd=1, segmentation={"counts": [0, 3072], "size": [48, 64]})
    result = pull(context, coco.write(tmp_path / "pets"))
    assert (result.labels, result.pictures, result.transferred, result.is_new) == (["cat", "dog"], 60, 60, True)
    assert (result.background, result.clipped, result.refused, result.stop_here) == (0, 0, {}, None)
    assert sum(sum(side.values()) for side in result.counts.values()) == 61, "the crowd is no object to find"
    snapshot = read_snapshot(bottle, "pets", result.snapshot_id)
    assert all(bottle.read(s.path) == coco.files[s.source.rpartition("/")[2]] for s in snapshot.samples)
    assert {s.split for s in snapshot.samples} == {"train", "val", "golden"}
    first, second, crowd = by_name(snapshot)["3.jpg"]
    assert (first.label, first.box, first.ignore) == ("dog", (4, 2, 30, 20), False)
    assert (second.label, second.box, second.polygons) == (
        "dog",
        (10.5, 4, 20, 30.25),
        ((10.5, 4, 30.5, 4, 30.5, 34.25),),
    )
    assert (crowd.label, crowd.ignore, crowd.polygons) == ("cat", True, ())


def test_the_same_data_is_the_same_snapshot_and_nothing_is_fetched_again(
    coco: Coco, context: job.Context, tmp_path: Path
) -> None:
    path = coco.write(tmp_path / "pets")
    first = pull(context, path)
    coco.images.reverse()
    coco.annotations.reverse()
    again = pull(context, coco.write(tmp_path / "pets"))
    assert (again.snapshot_id, again.transferred, again.is_new) == (first.snapshot_id, 0, False)
    coco.annotations[0]["bbox"][2] -= 1
    assert pull(context, coco.write(tmp_path / "pets")).snapshot_id != first.snapshot_id


def test_wrong_objects_are_refused_one_by_one_and_the_rest_goes_on(
    coco: Coco, context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    coco.add(0, [5, 5, 0, 10])  # 61
    coco.add(0, [5, 5, 10, -3])
    coco.add(0, [70, 5, 10, 10])
    coco.add(0, [5, 5, 10, 10], 9)
    coco.add(0, [5, 5, 10, 10], None)
    coco.add(0, [5, 5, 10, 10], id=3)
    coco.add(999, [5, 5, 10, 10])
    coco.add(0, [5, 5, 10])
    coco.add(0, [5, 5, 10, float("nan")])
    coco.add(0, None)
    coco.add(0, [5, 5, 10, 10], segmentation=[[1, 2, 3, 4]])
    coco.annotations.append("none")
    result = pull(context, coco.write(tmp_path / "pets"), max_bad_share=0.2)
    assert refusals(bottle) == {
        "0.jpg#61": "zero_area", "0.jpg#62": "zero_area", "0.jpg#63": "zero_area", "0.jpg#64": "unknown_category",
        "0.jpg#65": "unknown_category", "0.jpg#3": "duplicate_id", "annotations#67": "unknown_picture",
        "0.jpg#68": "malformed", "0.jpg#69": "malformed", "0.jpg#70": "malformed", "0.jpg#71": "malformed",
        "annotations#71": "malformed",
    }  # fmt: skip
    assert result.refused == Counter(refusals(bottle).values())
    assert result.pictures == 60
    assert len(by_name(read_snapshot(bottle, "pets", result.snapshot_id))["0.jpg"]) == 1


def test_too_many_bad_objects_refuse_the_pull(
    coco: Coco, context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    for _ in range(5):
        coco.add(0, [5, 5, 0, 0])
    path = coco.write(tmp_path / "pets")
    with pytest.raises(DataValidationError, match=r"5 of 65 objects of group pets are bad \(5 zero_area\)"):
        pull(context, path, max_bad_share=0.05)
    assert list(bottle.keys("snapshots")) == []
    assert pull(context, path, max_bad_share=0.08).pictures == 60


def test_objects_that_reach_beyond_the_picture_are_clipped_and_counted(
    coco: Coco, context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    coco.add(0, [-5, 40, 20, 20], segmentation=[[-5, 40, 15, 40, 15, 60, -5, 60]])
    coco.add(1, [0, 0, WIDTH, HEIGHT])
    result = pull(context, coco.write(tmp_path / "pets"))
    assert (result.clipped, result.refused) == (1, {})
    found = by_name(read_snapshot(bottle, "pets", result.snapshot_id))
    assert (found["0.jpg"][1].box, found["0.jpg"][1].polygons) == ((0, 40, 15, 8), ((0, 40, 15, 40, 15, 48, 0, 48),))
    assert found["1.jpg"][1].box == (0, 0, WIDTH, HEIGHT)


def test_what_lies_inside_is_not_changed_by_rounding() -> None:
    listed = AnnotatedObject(label="cat", box=(0.1, 0.2, 0.7, 0.1))
    assert inside(listed, (64, 48)) is listed


def test_bad_pictures_are_refused_with_reasons(
    coco: Coco, context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    coco.files["0.jpg"] = coco.files["0.jpg"][:200]
    coco.files["1.jpg"] = b""
    del coco.files["2.jpg"]
    coco.images[3] |= {"width": WIDTH + 1}
    coco.images.append({**coco.images[4], "file_name": "5.jpg"})  # whose objects are those of picture 4?
    coco.images += [{"id": 900}, {"id": 901, "file_name": "../../secret.jpg"}, {"id": 902, "file_name": "/etc/x.jpg"}]
    coco.annotations[6]["bbox"] = [0, 0, 0, 0]
    result = pull(context, coco.write(tmp_path / "pets"), max_bad_share=0.2)
    assert refusals(bottle) == {
        "0.jpg": "corrupt", "1.jpg": "corrupt", "2.jpg": "missing", "3.jpg": "other_size", "4.jpg": "duplicate_id",
        "5.jpg": "duplicate_id", "6.jpg": "no_usable_object", "6.jpg#7": "zero_area",
        "annotations#5": "unknown_picture",
        "images[61]": "malformed", "images[62]": "malformed", "images[63]": "malformed",
    }  # fmt: skip
    assert result.pictures == 54
    with pytest.raises(DataValidationError, match=r"10 of 64 pictures of group pets are bad"):
        pull(context, str(tmp_path / "pets" / "annotations.json"), max_bad_share=0.05)


def test_pictures_without_objects_are_kept_as_background(
    coco: Coco, context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    coco.annotations = [a for a in coco.annotations if a["image_id"] >= 10]
    result = pull(context, coco.write(tmp_path / "pets"))
    assert (result.pictures, result.background) == (60, 10)
    assert by_name(read_snapshot(bottle, "pets", result.snapshot_id))["4.jpg"] == ()


def test_copies_of_a_picture_are_one_and_with_other_objects_none(
    coco: Coco, context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    for number, (original, box) in enumerate([(0, [1, 2, 30, 20]), (1, [9, 9, 9, 9])]):
        coco.files[f"copy_{number}.jpg"] = coco.files[f"{original}.jpg"]
        coco.images.append({"id": 100 + number, "file_name": f"copy_{number}.jpg"})
        coco.add(100 + number, box, 1 + original)
    result = pull(context, coco.write(tmp_path / "pets"))
    assert refusals(bottle) == {
        "copy_0.jpg": "duplicate", "1.jpg": "conflicting_labels", "copy_1.jpg": "conflicting_labels"
    }  # fmt: skip
    assert result.pictures == 59


def test_a_picture_that_a_camera_turned_has_the_size_that_is_seen(
    coco: Coco, context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    coco.files["0.jpg"] = coco.files["1.jpg"] = b""
    coco.files |= {"0.jpg": drawing(1000, exif=exif), "1.jpg": drawing(1001, exif=exif)}
    coco.images[0] |= {"width": HEIGHT, "height": WIDTH}  # as it is seen
    result = pull(context, coco.write(tmp_path / "pets"))
    (turned,) = [s for s in read_snapshot(bottle, "pets", result.snapshot_id).samples if s.source.endswith("/0.jpg")]
    assert (turned.width, turned.height) == (HEIGHT, WIDTH)
    assert refusals(bottle) == {"1.jpg": "other_size"}
    assert b"once it is turned as its EXIF orientation says" in bottle.read("meta/pets/refused.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no JSON file"),
        (b"[]", "is no COCO file"),
        (b'{"images": [], "annotations": []}', "is no COCO file"),
        (b'{"images": [], "annotations": [], "categories": [{"id": 1}]}', "has no id or no name"),
        (
            b'{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "is called 'a' and 'b'",
        ),
        (b'{"images": [], "annotations": [], "categories": []}', "has no objects in train and val and golden"),
    ],
)
def test_what_is_no_coco_file_is_refused(context: job.Context, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(DataValidationError, match=message):
        pull(context, str(path))
    with pytest.raises(DataValidationError, match="the annotations are not there"):
        pull(context, str(tmp_path / "none.json"))


def test_a_side_without_objects_and_a_class_that_is_not_trained_are_refused(
    coco: Coco, context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    result = pull(context, coco.write(tmp_path / "pets"))
    sides = {s.source.rpartition("/")[2]: s.split for s in read_snapshot(bottle, "pets", result.snapshot_id).samples}
    val = next(int(name.removesuffix(".jpg")) for name, side in sides.items() if side == "val")
    coco.categories.append({"id": 3, "name": "newt"})
    coco.add(val, [1, 1, 20, 20], 3)
    with pytest.raises(DataValidationError, match=r"without an object in train: 'newt' \(1 objects\)"):
        pull(context, coco.write(tmp_path / "pets"))
    coco.annotations = [a for a in coco.annotations if sides[f"{a['image_id']}.jpg"] != "golden"]
    with pytest.raises(DataValidationError, match="no objects in golden"):
        pull(context, coco.write(tmp_path / "pets"))


def test_files_in_the_bottle_and_in_s3_make_the_same_snapshot(
    coco: Coco, context: job.Context, bottle: FolderBottle, tmp_path: Path, s3_bottle: str
) -> None:
    context.bottle = bottle
    wanted = pull(context, coco.write(tmp_path / "pets")).snapshot_id
    shutil.copytree(tmp_path / "pets", bottle.root / "incoming" / "pets")
    assert pull(context, "incoming/pets/annotations.json").snapshot_id == wanted
    remote = open_bottle(s3_bottle)
    for path in (tmp_path / "pets").rglob("*.*"):
        remote.put(f"sets/{path.relative_to(tmp_path)}", path)
    assert pull(context, f"{s3_bottle}/sets/pets/annotations.json").snapshot_id == wanted
    flat = tmp_path / "flat"
    shutil.copytree(tmp_path / "pets" / "images", flat)
    shutil.copy(tmp_path / "pets" / "annotations.json", flat)
    assert pull(context, str(flat / "annotations.json"), images=None).snapshot_id == wanted


def test_a_completed_snapshot_is_nothing_new_and_a_pinned_one_is_not_pulled(
    coco: Coco, context: job.Context, tmp_path: Path, database_url: str
) -> None:
    path = coco.write(tmp_path / "pets")
    first = pull(context, path, fingerprint="f")
    assert first.stop_here is None
    run = database.PipelineRun(
        pipeline="p", dag_run_id="night-1", outcome="promoted", snapshot_id=first.snapshot_id, fingerprint="f"
    )
    database.record_run(run)
    again = pull(context, path, fingerprint="f")
    assert again.stop_here is not None
    assert (again.stop_here.outcome, again.background) == ("nothing_new", 0)
    assert pull(context, path, fingerprint="f", force=True).stop_here is None
    pinned = pull(context, "nowhere.json", fingerprint="f", snapshot_id=first.snapshot_id)
    assert (pinned.snapshot_id, pinned.transferred, pinned.stop_here, pinned.clipped) == (
        first.snapshot_id,
        0,
        None,
        None,
    )


@pytest.mark.skipif(not RACCOON.is_dir(), reason="the photographs of raccoons are not beside the checkout")
def test_real_photographs_are_read(context: job.Context, bottle: FolderBottle) -> None:
    result = pull(context, str(RACCOON / "annotations" / "instances_default.json"), images=str(RACCOON / "images"))
    listed = json.loads((RACCOON / "annotations" / "instances_default.json").read_text())
    kept = sum(sum(side.values()) for side in result.counts.values())
    assert result.labels == ["raccoon"]
    assert kept + sum(result.refused.get(r, 0) for r in ("zero_area", "duplicate_id")) >= 0.95 * len(
        listed["annotations"]
    )
