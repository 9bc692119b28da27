"""Which predictions are right: cases with known answers, and random sets against other ways to the same numbers."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from training_jobs.scoring import masks
from training_jobs.scoring.detection import COCO_OVERLAPS, Judged, compare, frozen_threshold, rates, score, size_of
from training_jobs.scoring.matching import Compared, best_threshold, compared, counts, match

Box = list[float]


def beside(
    objects: list[Box], predictions: list[tuple[Box, float]], labels: list[int] | None = None,
    true_labels: list[int] | None = None, ignored: list[bool] | None = None,
) -> Compared:  # fmt: skip
    """Boxes as x, y, width, height."""
    boxes = np.array([box for box, _ in predictions], np.float64).reshape(-1, 4)
    true = np.array(objects, np.float64).reshape(-1, 4)
    for corners in (boxes, true):
        corners[:, 2:] += corners[:, :2]
    return compared(
        np.array([s for _, s in predictions], np.float64), np.array(labels or [0] * len(boxes), np.int64), boxes,
        np.array(true_labels or [0] * len(true), np.int64), true, np.array(ignored or [False] * len(true), bool),
    )  # fmt: skip


TEN = [0, 0, 10, 10]
CASES = [
    pytest.param([TEN], [(TEN, 0.9), ([0, 0, 10, 9], 0.8)], (1, 1, 0), id="duplicate"),
    pytest.param([TEN], [([0, 0, 10, 5], 0.9)], (1, 0, 0), id="IoU of 0.5"),
    pytest.param([TEN], [([0, 0, 10, 4.999], 0.9)], (0, 1, 1), id="IoU of 0.4999"),
    pytest.param([TEN, [5, 0, 10, 10]], [([2, 0, 10, 10], 0.9), ([-3, 0, 10, 10], 0.8)], (1, 1, 1), id="greedy"),
    pytest.param([TEN], [([0, 0, 10, 5.5], 0.9), ([0, 0, 10, 9.5], 0.8)], (1, 1, 0), id="the surer one takes it"),
    pytest.param([TEN, [4, 0, 10, 10]], [(TEN, 0.9), ([1.5, 0, 10, 10], 0.8)], (2, 0, 0), id="the next best object"),
    pytest.param([], [(TEN, 0.9), ([20, 20, 5, 5], 0.8)], (0, 2, 0), id="no object"),
    pytest.param([TEN, [20, 0, 5, 5]], [], (0, 0, 2), id="no prediction"),
    pytest.param([], [], (0, 0, 0), id="nothing at all"),
]


@pytest.mark.parametrize(("objects", "predictions", "wanted"), CASES)
def test_known_cases(objects: list[Box], predictions: list[tuple[Box, float]], wanted: tuple[int, int, int]) -> None:
    picture = beside(objects, predictions)
    assert counts(picture, match(picture, np.array([0.5]))[0], 0.0) == wanted
    turned = beside(objects[::-1], predictions[::-1])
    assert counts(turned, match(turned, np.array([0.5]))[0], 0.0) == wanted


def test_another_class_takes_nothing() -> None:
    picture = beside([TEN], [(TEN, 0.9), (TEN, 0.8), (TEN, 0.7)], labels=[1, -1, 0])
    assert match(picture, np.array([0.5]))[0].tolist() == [-1, -1, 0]


def test_in_a_crowd_nothing_is_right_or_wrong_but_its_objects_are_found_first() -> None:
    crowd = [0, 0, 100, 100]
    inside, half, object_ = ([50, 50, 10, 10], 0.9), ([95, 0, 10, 10], 0.8), ([0, 0, 10, 10], 0.7)
    picture = beside([crowd, TEN], [inside, half, object_, ([96, 50, 10, 10], 0.6)], ignored=[True, False])
    taken = match(picture, np.array([0.5]))[0]
    assert taken.tolist() == [-2, -2, 1, -1], "half of the second lies inside, two fifths of the last"
    assert counts(picture, taken, 0.0) == (1, 1, 0)


def test_the_threshold_counts_what_is_as_sure() -> None:
    picture = beside([TEN, [20, 0, 10, 10]], [(TEN, 0.9), ([20, 0, 10, 10], 0.4), ([40, 0, 5, 5], 0.4)])
    taken = match(picture, np.array([0.5]))[0]
    assert [counts(picture, taken, c) for c in (0.95, 0.9, 0.41, 0.4)] == [(0, 0, 2), (1, 0, 1), (1, 0, 1), (2, 1, 0)]


def random_sets(seed: int, pictures: int = 40, classes: int = 3, crowds: bool = False) -> list[Compared]:
    """Objects, and predictions near them, beside them, of other classes, and anywhere."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(pictures):
        objects = [
            [*random.uniform(0, 200, 2), *np.exp(random.uniform(1, 5.5, 2))] for _ in range(random.integers(0, 8))
        ]
        labels = [int(v) for v in random.integers(0, classes, len(objects))]
        predictions, predicted = [], []
        for box, label in zip(objects, labels, strict=True):
            for _ in range(random.integers(0, 4)):
                moved = np.array(box) + random.normal(0, 0.08, 4) * np.array([*box[2:], *box[2:]])
                predictions.append((moved.tolist(), float(random.random())))
                predicted.append(label if random.random() < 0.9 else int(random.integers(0, classes)))
        for _ in range(random.integers(0, 4)):
            predictions.append(([*random.uniform(0, 200, 2), *random.uniform(3, 120, 2)], float(random.random())))
            predicted.append(int(random.integers(0, classes)))
        ignored = [bool(crowds and random.random() < 0.2) for _ in objects]
        made.append(beside(objects, predictions, predicted, labels, ignored))
    return made


def by_coco(pictures: list[Compared], overlaps: np.ndarray) -> COCOeval:
    """The same by pycocotools."""
    objects, predictions = [], []
    for number, p in enumerate(pictures):
        for label, box, area, ignored in zip(p.true_labels, p.true_boxes, p.true_areas, p.ignored, strict=True):
            xywh = [*box[:2], *(box[2:] - box[:2])]
            entry = {"image_id": number, "category_id": int(label), "bbox": xywh, "area": area, "iscrowd": int(ignored)}
            objects.append({"id": len(objects) + 1, **entry})
        for label, box, confidence in zip(p.labels, p.boxes, p.scores, strict=True):
            xywh = [*box[:2], *(box[2:] - box[:2])]
            predictions.append({"image_id": number, "category_id": int(label), "bbox": xywh, "score": confidence})
    truth = COCO()
    images: list[dict[str, Any]] = [{"id": number} for number in range(len(pictures))]
    truth.dataset = {"images": images, "annotations": objects, "categories": [{"id": label} for label in range(3)]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(predictions), "bbox")
        evaluation.params.maxDets = [1, 10, 10_000]
        evaluation.params.iouThrs = overlaps
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_pycocotools(seed: int, crowds: bool) -> None:
    pictures = random_sets(seed, crowds=crowds)
    judged = Judged(pictures, 3, 0.5, 0.3)
    precision = by_coco(pictures, COCO_OVERLAPS).eval["precision"][:, :, :, 0, -1]  # [T, R, K]
    assert judged.ranking.average_precision() == pytest.approx(precision.mean(axis=(1, 2)), abs=1e-9)
    metrics = judged.metrics()
    assert metrics["ap50"] == pytest.approx(precision[0].mean())
    assert metrics["ap"] == pytest.approx(precision.mean())
    assert 0.1 < metrics["ap"] < metrics["ap50"] < 0.9, "neither all nor nothing: the test can see a change"


@pytest.mark.parametrize("seed", range(6))
def test_right_wrong_and_missed_are_those_of_pycocotools(seed: int) -> None:
    pictures = random_sets(100 + seed, crowds=True)
    evaluation = by_coco(pictures, np.array([0.5]))
    right = wrong = missed = 0
    for entry in evaluation.evalImgs:
        if entry is None or entry["aRng"] != [0, 1e10]:
            continue
        shown = (np.array(entry["dtScores"]) >= 0.4) & ~entry["dtIgnore"][0].astype(bool)
        hits = int((shown & (entry["dtMatches"][0] > 0)).sum())
        right, wrong = right + hits, wrong + int(shown.sum()) - hits
        missed += int((entry["gtIgnore"] == 0).sum()) - hits
    assert Judged(pictures, 3, 0.5, 0.4).counts.sum(axis=0).tolist() == [right, wrong, missed]


@pytest.mark.parametrize("seed", range(20))
def test_the_frozen_threshold_is_the_best_of_all(seed: int) -> None:
    pictures = random_sets(200 + seed, pictures=12, crowds=True)
    threshold, f1 = frozen_threshold(pictures, 0.5)
    scores = np.unique(np.concatenate([p.scores for p in pictures]))
    tried = [Judged(pictures, 3, 0.5, float(s)).metrics()["f1"] for s in scores]
    assert f1 == pytest.approx(max(tried), abs=1e-12)
    assert Judged(pictures, 3, 0.5, threshold).metrics()["f1"] == pytest.approx(f1, abs=1e-12)
    assert np.abs(scores - threshold).min() > 0, "between two scores: rounding changes nothing"


def test_equal_scores_count_together_and_nothing_right_has_the_default() -> None:
    threshold, f1 = best_threshold(np.array([0.5, 0.5, 0.2]), np.array([True, False, True]), 2)
    assert f1 == pytest.approx(4 / 5), "all three; the two of 0.5 alone give 2/4"
    assert threshold < 0.2
    _, f1 = best_threshold(np.array([0.5, 0.5, 0.2]), np.array([True, False, False]), 1)
    assert f1 == pytest.approx(2 / 3), "the right one of the two cannot be had alone"
    assert best_threshold(np.array([0.9]), np.array([False]), 3) == (0.25, 0.0)
    assert best_threshold(np.array([]), np.array([], bool), 3) == (0.25, 0.0)


def test_every_object_has_one_size() -> None:
    assert size_of(np.array([1023.9, 1024, 9215.9, 9216])).tolist() == [0, 1, 1, 2]


def test_slices_add_up_and_belong_to_their_class_and_size() -> None:
    small, large = ([0, 0, 20, 20], 0.9), ([100, 100, 200, 200], 0.8)
    picture = beside(
        [small[0], large[0], [50, 0, 40, 40]], [small, large, ([400, 0, 50, 50], 0.7)], [0, 1, 1], [0, 1, 0]
    )  # fmt: skip
    found = score("v", ["ant", "bee", "wasp"], Judged([picture], 3, 0.5, 0.1), [])
    shown = {name: (part.support, round(part.score, 3)) for name, part in found.slices.items()}
    assert shown == {
        "class/ant": (2, 0.667), "class/bee": (1, 0.667), "size/small": (1, 1.0), "size/medium": (1, 0.0),
        "size/large": (1, 1.0),
    }  # fmt: skip
    assert (found.true_positives, found.false_positives, found.false_negatives) == (2, 1, 1)


def test_nothing_to_find_and_nothing_found_is_right() -> None:
    assert rates(0, 0, 0) == (1, 1, 1)
    assert rates(0, 2, 0) == (0, 1, 0)
    assert rates(0, 0, 2) == (0, 0, 0)


def test_the_difference_has_the_error_that_fresh_golden_sets_show() -> None:
    """Two models of equal quality on many golden sets: the spread of their differences is what one set estimates."""

    def pair(seed: int) -> tuple[Judged, Judged]:
        sets = random_sets(seed, pictures=60)
        noise = np.random.default_rng(seed)
        worse = [
            compared(noise.random(len(p.scores)), p.labels, p.boxes, p.true_labels, p.true_boxes, p.ignored)
            for p in sets
        ]
        return Judged(sets, 3, 0.5, 0.4), Judged(worse, 3, 0.5, 0.4)

    pairs = [pair(1000 + n) for n in range(60)]
    differences = {name: [a.metrics()[name] - b.metrics()[name] for a, b in pairs] for name in ("f1", "ap50")}
    estimated = compare(*pairs[0], ["a", "b", "c"], np.arange(60)).gains
    for name, values in differences.items():
        assert estimated[name].value == pytest.approx(values[0])
        assert 0.6 < estimated[name].standard_error / np.std(values) < 1.6


def test_weighting_a_picture_twice_is_having_it_twice() -> None:
    pictures = random_sets(7, pictures=6)
    weights = np.array([1.0, 2, 0, 1, 3, 1])
    repeated = [p for p, w in zip(pictures, weights, strict=True) for _ in range(int(w))]
    assert Judged(pictures, 3, 0.5, 0.3).metrics(weights) == pytest.approx(Judged(repeated, 3, 0.5, 0.3).metrics())


def test_a_picture_counts_as_right_when_nothing_in_it_is_wrong_or_missed() -> None:
    good, bad = beside([TEN], [(TEN, 0.9)]), beside([TEN], [(TEN, 0.9), ([50, 50, 5, 5], 0.8)])
    empty, ghost = beside([], []), beside([], [(TEN, 0.9)])
    ours, theirs = Judged([good, empty, good], 1, 0.5, 0.5), Judged([bad, ghost, good], 1, 0.5, 0.5)
    found = compare(ours, theirs, ["a"], np.arange(3))
    assert (found.only_candidate_right, found.only_champion_right, found.pictures) == (2, 0, 3)


@pytest.mark.parametrize("seed", range(5))
def test_masks_of_polygons_are_those_of_pycocotools_but_for_their_borders(seed: int) -> None:
    random = np.random.default_rng(seed)
    angles = np.sort(random.uniform(0, 2 * np.pi, 9))
    outline = (np.stack([np.cos(angles), np.sin(angles)], 1) * random.uniform(15, 40, (9, 1)) + 50).ravel().tolist()
    ours = masks.of_polygons([outline], (100, 110))
    theirs = coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects([outline], 100, 110))).astype(bool)
    whole = np.zeros((100, 110), bool)
    whole[ours.top : ours.top + ours.pixels.shape[0], ours.left : ours.left + ours.pixels.shape[1]] = ours.pixels
    x, y = np.array(outline).reshape(-1, 2).T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert ours.area == pytest.approx(area, rel=0.02), "the shoelace formula"
    assert (whole & theirs).sum() / (whole | theirs).sum() > 0.93


def test_masks_of_rectangles_are_exact_and_overlap_as_their_boxes_do() -> None:
    a = masks.of_polygons([[10, 5, 30, 5, 30, 25, 10, 25]], (100, 100))
    b = masks.of_polygons([[20, 5, 40, 5, 40, 25, 20, 25]], (100, 100))
    beyond = masks.of_polygons([[-10, -10, 5, -10, 5, 5, -10, 5]], (100, 100))
    assert (a.left, a.top, a.area, a.shared(b), beyond.area, a.shared(beyond)) == (10, 5, 400, 200, 25, 0)
    found = masks.overlap([a], [b, b, beyond], np.array([False, True, False]))
    assert found.tolist() == [[pytest.approx(200 / 600), 0.5, 0]]


def test_a_pixel_belongs_to_a_mask_where_its_center_does() -> None:
    x, y, right, bottom = 10.4, 5.6, 20.4, 8.6
    drawn = masks.of_polygons([[x, y, right, y, right, bottom, x, bottom]], (100, 100))
    rows, columns = np.nonzero(drawn.pixels)
    assert (rows.min() + drawn.top, rows.max() + drawn.top) == (6, 8)
    assert (columns.min() + drawn.left, columns.max() + drawn.left) == (10, 19)
    box = masks.of_box(np.array([x, y, right, bottom]), (100, 100))
    assert (box.left, box.top, box.pixels.shape) == (10, 6, (3, 10))


def test_a_mask_of_two_parts_with_a_hole_between_them() -> None:
    parts = masks.of_polygons([[0, 0, 10, 0, 10, 10, 0, 10], [20, 0, 30, 0, 30, 10, 20, 10]], (20, 40))
    assert parts.area == 200
    assert parts.shared(masks.of_box(np.array([10.0, 0, 20, 10]), (20, 40))) == 0
