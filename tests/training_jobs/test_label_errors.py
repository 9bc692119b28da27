"""Finding labels that are probably wrong: confident learning by its definition, and the job with a real training."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from jobkit import job
from jobkit.bottle import FolderBottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.paths import picture
from jobkit.snapshot import Snapshot, mark_as_last, read_snapshot, write_snapshot
from tests.support.reports import assert_stands_alone, text_of
from tests.training_jobs.classifier.support import LABELS, TINY
from training_jobs import find_label_errors, review_labels
from training_jobs.data.label_review import read_reviews
from training_jobs.data.listing import Listed
from training_jobs.data.picture_inspection import inspect
from training_jobs.data.selection import Rules, select
from training_jobs.scoring.label_errors import Suspects, normalized_margins, several_suspects, suspects

GROUP = "colors"


def noisy(seed: int, pictures: int = 400, classes: int = 4) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Given labels, a tenth of them wrong, and probabilities of a fair model, surer about some classes than others."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, pictures)
    logits = random.normal(0, 1, (pictures, classes))
    logits[np.arange(pictures), truth] += 1.0 + truth
    labels = np.where(random.random(pictures) < 0.1, random.integers(0, classes, pictures), truth)
    exponents = np.exp(logits)
    return labels.astype(np.int64), exponents / exponents.sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
def test_the_suspects_are_those_of_the_definition(seed: int) -> None:
    labels, probabilities = noisy(seed)
    thresholds = [probabilities[labels == j, j].mean() for j in range(4)]
    expected = []
    for n, row in enumerate(probabilities):
        reached = [j for j in range(4) if row[j] >= thresholds[j]]
        believed = max(reached, key=lambda j: row[j]) if reached else labels[n]
        if believed != labels[n] and row.argmax() != labels[n]:
            others = [row[j] for j in range(4) if j != labels[n]]
            expected.append((row[labels[n]] - max(others), n, believed))
    found = suspects(labels, probabilities)
    assert sorted(found.picture.tolist()) == np.flatnonzero(normalized_margins(labels, probabilities) < 0).tolist()
    found = Suspects(*(column[found.sure] for column in found))
    assert list(zip(found.picture, found.suggested, strict=True)) == [(n, j) for _, n, j in sorted(expected)]
    assert found.margin == pytest.approx([margin for margin, *_ in sorted(expected)])
    assert 10 < len(expected) < 100


@pytest.mark.parametrize("seed", range(5))
def test_the_suspects_are_those_of_the_authors_library(seed: int) -> None:
    filters = pytest.importorskip("cleanlab.filter", reason="cleanlab is no part of the environment")
    labels, probabilities = noisy(seed)
    theirs = filters.find_label_issues(
        labels, probabilities, filter_by="confident_learning", return_indices_ranked_by="normalized_margin", n_jobs=1
    )
    found = suspects(labels, probabilities)
    assert found.picture[found.sure].tolist() == theirs.tolist()
    assert found.sure[: len(theirs)].all(), "they come first"


def test_a_class_without_pictures_and_ties_do_no_harm() -> None:
    labels, probabilities = noisy(0)
    wider = np.concatenate([probabilities, np.zeros((len(labels), 1))], axis=1)
    assert suspects(labels, wider).picture.tolist() == suspects(labels, probabilities).picture.tolist()
    assert suspects(np.array([0, 1]), np.full((2, 2), 0.5)).picture.size == 0
    assert normalized_margins(np.array([1]), np.array([[0.2, 0.7, 0.1]])) == pytest.approx([0.5])


def test_of_several_labels_each_class_is_judged_by_itself() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, (300, 3))
    probabilities = np.clip(np.where(truth == 1, 0.9, 0.1) + random.normal(0, 0.05, truth.shape), 0.01, 0.99)
    probabilities[[7, 9]] = np.where(truth[[7, 9]] == 1, 0.98, 0.02)
    given = truth.copy()
    given[7, 1] ^= 1
    given[9] ^= 1
    found = several_suspects(given.astype(np.int64), probabilities)
    assert set(found.picture.tolist()) == {7, 9}
    assert {n: row.tolist() for n, row in zip(found.picture.tolist(), found.suggested, strict=True)} == {
        7: truth[7].tolist(), 9: truth[9].tolist()
    }  # fmt: skip


def colored(number: int) -> bytes:
    """A noisy picture with a patch of the color `number % 3` of `LABELS`."""
    random = np.random.default_rng(number)
    drawn = random.integers(0, 60, (24, 24, 3), dtype=np.uint8)
    drawn[4:18, 5:20, number % 3] += 180
    return cv2.imencode(".png", drawn)[1].tobytes()


def planted(bottle: FolderBottle, count: int = 90) -> tuple[Snapshot, dict[str, str]]:
    """A snapshot of which one golden and one training picture are mislabeled, and these two's true labels."""
    contents = {f"{n}.png": colored(n) for n in range(count)}
    inspected = {name: inspect(name, content, 1000) for name, content in contents.items()}
    rules, truth = Rules(16, 1000, 0.2, 0.2), {f"{n}.png": LABELS[n % 3] for n in range(count)}

    def selected(labels: dict[str, str]) -> Snapshot:
        listed = [Listed(source=name, label=label, split_group=name) for name, label in labels.items()]
        selection = select(listed, inspected, rules, near_copies="off", reviews=read_reviews(bottle, GROUP))
        summary = write_snapshot(bottle, GROUP, selection.samples, [])
        mark_as_last(bottle, summary)
        return read_snapshot(bottle, GROUP, summary.snapshot_id)

    for found in inspected.values():
        bottle.write(picture(found.sha256, found.suffix), contents[found.source])
    clean = selected(truth)
    wrong = {split: next(s for s in clean.split(split) if s.label == "red").source for split in ("golden", "train")}
    spoiled = selected(truth | dict.fromkeys(wrong.values(), "blue"))
    return spoiled, {name: truth[name] for name in wrong.values()}


def test_planted_errors_are_queued_golden_ones_first_and_a_review_takes_them_out(
    context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    snapshot, truth = planted(bottle)
    config = tmp_path / "colors.yaml"
    tiny = {**TINY, "experiment_name": GROUP, "optimizer": {"lr": 5e-3}}
    config.write_text(json.dumps(tiny))
    arguments = find_label_errors.Arguments(group=GROUP, config_filename=config, folds=2, epochs=6)
    found = find_label_errors.run(arguments, context)
    rows = list(csv.DictReader(io.StringIO(bottle.read(found.queue).decode())))
    assert rows[0]["source"] in truth and rows[0]["split"] == "golden"
    splits = [row["split"] == "golden" for row in rows]
    assert splits == sorted(splits, reverse=True) and sum(splits) == found.golden_suspects
    told = {row["source"]: (row["labels"], row["relabel_to"]) for row in rows}
    assert {name: told.get(name) for name in truth} == dict.fromkeys(truth, ("blue", "red"))
    assert [row["sure"] for row in rows if row["source"] in truth] == ["yes", "yes"]
    page = bottle.read(found.report).decode()
    assert_stands_alone(page)
    assert page.count("data:image/jpeg") == len(rows)
    assert "blue → red?" in text_of(page) and "review_labels --group colors" in text_of(page)
    assert list(bottle.keys("models")) == [], "the trainings of the folds leave nothing behind"
    table = bottle.read(found.queue).decode().replace(",,red,", ",relabel,red,")
    bottle.write("decisions.csv", table)
    reviewed = review_labels.run(review_labels.Arguments(group=GROUP, by="anna", decisions="decisions.csv"), context)
    assert reviewed.relabel >= 2
    listed = {s.sha256: s for s in snapshot.samples}
    decided = read_reviews(bottle, GROUP)
    assert {listed[sha].source for sha in decided} >= set(truth)


def test_folds_keep_picsets_whole_and_judge_each_picture_once(bottle: FolderBottle) -> None:
    snapshot, _ = planted(bottle, 60)
    samples = [s.model_copy(update={"split_group": f"g{n // 4}"}) for n, s in enumerate(snapshot.samples)]
    judged = []
    for inside, outside in find_label_errors.parts(samples, 3, seed=0):
        assert not {samples[i].split_group for i in inside} & {samples[i].split_group for i in outside}
        judged += outside.tolist()
    assert sorted(judged) == list(range(len(samples)))
    with pytest.raises(DataValidationError, match="have no 30 folds"):
        list(find_label_errors.parts(samples, 30, seed=0))


def test_a_training_that_starts_from_a_model_which_knows_the_labels_is_refused(
    context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    planted(bottle, 60)
    config = tmp_path / "colors.yaml"
    model = {**TINY["model"], "load_from": f"models/{GROUP}/v__0/checkpoints/best.ckpt"}
    config.write_text(json.dumps({**TINY, "model": model}))
    with pytest.raises(ConfigurationError, match="has learned the labels that are to be judged"):
        find_label_errors.run(find_label_errors.Arguments(group=GROUP, config_filename=config), context)
