"""Pictures with several labels, or none: from what a source lists to a snapshot, and how models of them are scored."""

from __future__ import annotations

import json
import random
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from torchmetrics.classification import MultilabelAveragePrecision

from jobkit import job
from jobkit.bottle import FolderBottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.snapshot import read_snapshot, snapshot_id
from tests.conftest import CollectServer
from tests.support.several_labels import COLORS, listing, make_snapshot
from tests.training_jobs.pictures import item, items, picture, publish
from tests.training_jobs.test_table_source import table
from training_jobs import pull_dataset
from training_jobs.data.legacy_dataset_file import write_dataset
from training_jobs.data.listing import Listed
from training_jobs.data.picture_inspection import inspect
from training_jobs.data.selection import Rules, check_classes, select
from training_jobs.scoring import multi_label

RULES = Rules(8, 1000, 0.2, 0.3)


def pull(context: job.Context, group: str, **options: object) -> pull_dataset.Result:
    return pull_dataset.run(pull_dataset.Arguments(pipeline="p", group=group, **options), context)


def test_a_picture_has_all_labels_that_it_is_listed_under() -> None:
    listed, inspected, _ = listing(24)
    found = {s.source: s for s in select(listed, inspected, RULES, "off", multi_label=True).samples}
    for number in range(24):
        wanted = [color for place, color in enumerate(COLORS) if number >> place & 1]
        assert (found[f"{number}.png"].labels, found[f"{number}.png"].label) == (wanted, "")


def test_without_the_option_such_a_picture_is_a_conflict() -> None:
    listed, inspected, _ = listing(24)
    found = select(listed, inspected, RULES, "off")
    assert {s.label for s in found.samples} == set(COLORS) and all(s.several is None for s in found.samples)
    assert {r.source for r in found.refused} == {f"{n}.png" for n in range(24) if n % 8 in (3, 5, 6, 7)}


def test_a_copy_under_another_name_gives_its_label_and_is_counted_as_a_duplicate() -> None:
    content = picture(1)
    listed = [Listed(source=f"{label}/1.png", label=label) for label in ("bee", "ant")]
    inspected = {entry.source: inspect(entry.source, content, 100) for entry in listed}
    found = select(listed, inspected, RULES, multi_label=True)
    assert [s.labels for s in found.samples] == [["ant", "bee"]]
    assert [r.reason for r in found.refused] == ["duplicate"]


def test_a_picture_that_is_said_to_show_a_class_and_none_is_a_conflict() -> None:
    listed = [Listed(source="1.png", label=label) for label in ("ant", "bee", None)]
    found = select(listed, {"1.png": inspect("1.png", picture(1), 100)}, RULES, multi_label=True)
    assert found.samples == []
    assert {r.reason for r in found.refused} == {"conflicting_labels"}
    assert "labeled ant, bee and none of the classes" in found.refused[0].detail


def test_near_copies_with_the_same_labels_stand_on_one_side() -> None:
    listed, inspected = [], {}
    for number in range(30):
        for form in ("PNG", "JPEG"):
            source = f"{number}.{form}"
            inspected[source] = inspect(source, picture(number, 64, form), 100)
            listed += [Listed(source=source, label=label) for label in ("ant", "bee")[: 1 + number % 2]]
    found = select(listed, inspected, RULES, multi_label=True)
    sides = {s.source: s.split for s in found.samples}
    assert len(sides) == 60 and len(set(sides.values())) == 3
    assert all(sides[f"{n}.PNG"] == sides[f"{n}.JPEG"] for n in range(30))


def test_the_selection_does_not_depend_on_the_order_of_the_listing() -> None:
    listed, inspected, _ = listing(40)
    expected, shuffled = select(listed, inspected, RULES, multi_label=True), listed[:]
    for seed in range(5):
        random.Random(seed).shuffle(shuffled)
        assert select(shuffled, inspected, RULES, multi_label=True) == expected


def test_every_class_needs_a_picture_on_each_side() -> None:
    listed, inspected, _ = listing(64)
    samples = select(listed, inspected, RULES, "off", multi_label=True).samples
    check_classes(samples, "g")
    with pytest.raises(DataValidationError, match=r"'red' has \d+ in .*, none in golden"):
        check_classes([s for s in samples if s.split != "golden" or "red" not in s.labels], "g")


def test_the_snapshot_reads_back_and_its_id_follows_the_labels(bottle: FolderBottle) -> None:
    snapshot = make_snapshot(bottle, 64)
    assert snapshot.is_multi_label and snapshot.summary.labels == list(COLORS)
    shown = [label for sample in snapshot.samples for label in sample.labels]
    assert sum(sum(counts.values()) for counts in snapshot.summary.counts.values()) == len(shown) == 96
    first, *rest = snapshot.samples
    other = first.model_copy(update={"several": tuple(set(COLORS) - set(first.labels))})
    assert snapshot_id([other, *rest]) != snapshot.summary.snapshot_id


def test_the_earlier_scripts_table_has_a_one_for_each_label(bottle: FolderBottle) -> None:
    snapshot = make_snapshot(bottle, 64)
    write_dataset(bottle, "g", snapshot.samples, [])
    content = json.loads(bottle.read("datasets/g.json"))
    columns = json.loads(content["data"])
    places = {f"pictures/{path}": row for row, path in columns["path"].items()}
    for sample in snapshot.samples:
        row = [columns[color][places[sample.path]] for color in COLORS]
        assert row == [float(color in sample.labels) for color in COLORS]


def test_collects_categories_become_labels(
    collect: CollectServer, context: job.Context, bottle: FolderBottle, group: str
) -> None:
    both = [item(f"{label}_both_{n}.png", picture(5000 + n), label) for n in range(4) for label in ("ant", "bee")]
    publish(collect, group, [*items(40), *both, item("rubbish.png", picture(6000), "trash")])
    plain = pull(context, group, max_bad_share=0.5)
    assert (plain.pictures, plain.refused) == (80, {"conflicting_labels": 8})
    result = pull(context, group, multi_label=True)
    samples = read_snapshot(bottle, group, result.snapshot_id).samples
    assert (result.pictures, result.refused, result.labels) == (85, {"duplicate": 4}, ["ant", "bee"])
    assert sum(s.labels == ["ant", "bee"] for s in samples) == 4 and sum(s.labels == [] for s in samples) == 1
    assert sum(counts["ant"] for counts in result.counts.values()) == 44
    before = read_snapshot(bottle, group, plain.snapshot_id).samples
    sides = {s.sha256: s.split for s in samples}
    assert all(sides[s.sha256] == s.split for s in before), "no picture changes sides"
    assert b"several" not in bottle.read(f"snapshots/{group}/{plain.snapshot_id}/manifest.jsonl")


def test_a_table_has_several_rows_or_an_array_of_labels(
    database_url: str, context: job.Context, bottle: FolderBottle, group: str
) -> None:
    rows: list[tuple[object, ...]] = []
    for number, entry in enumerate(items(40)):
        bottle.write(f"incoming/{entry.name}", entry.content)
        several = number % 10 == 3
        rows.append((f"incoming/{entry.name}", ["ant", "bee"] if several else [entry.category]))
    bottle.write("incoming/none.png", picture(7000))
    arrays = [*rows, ("incoming/none.png", [])]
    table(database_url, "path text, label text[]", arrays)
    options = {"source": "postgres", "table": "labels"}
    with pytest.raises(ConfigurationError, match=r"81 of 81 rows of public\.labels have an array .* set multi_label"):
        pull(context, group, **options)
    result = pull(context, group, multi_label=True, **options)
    samples = read_snapshot(bottle, group, result.snapshot_id).samples
    assert {s.source: s.labels for s in samples} == dict(arrays)
    table(database_url, "path text, label text", [(p, one) for p, labels in rows for one in labels], "public.rows")
    flat = pull(context, group, source="postgres", table="rows", multi_label=True)
    found = {s.source: s.labels for s in read_snapshot(bottle, group, flat.snapshot_id).samples}
    assert found == dict(rows)


def golden(count: int = 300, classes: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return 0 or 1 [N, K], and the probabilities of a good and of a bad model [N, K + 1]; many of one value."""
    generator = np.random.default_rng(2)
    truth = (generator.random((count, classes)) < 0.3).astype(np.int64)
    found = [
        np.pad(np.clip(truth * gain + generator.random(truth.shape) * 0.6, 0, 1).round(1), ((0, 0), (0, 1)))
        for gain in (0.4, 0.2)
    ]
    return truth, found[0], found[1]


def test_scores_are_those_of_scikit_learn_and_torchmetrics() -> None:
    truth, found, _ = golden()
    scores, probabilities = multi_label.score("v", list("abcd"), truth, found), found[:, :4]
    shown = probabilities >= 0.5
    assert scores.metrics["accuracy"] == pytest.approx(accuracy_score(truth, shown))
    assert scores.metrics["macro_f1"] == pytest.approx(f1_score(truth, shown, average="macro"))
    assert scores.metrics["map"] == pytest.approx(average_precision_score(truth, probabilities, average="macro"))
    torchs = MultilabelAveragePrecision(4)(torch.from_numpy(probabilities), torch.from_numpy(truth))
    assert scores.metrics["map"] == pytest.approx(float(torchs), abs=1e-5)
    each = f1_score(truth, shown, average=None)
    assert [part.score for part in scores.slices.values()] == pytest.approx(list(each))


def test_a_class_that_the_golden_set_does_not_have_makes_a_picture_wrong() -> None:
    truth, _, _ = golden()
    perfect = np.pad(truth.astype(float), ((0, 0), (0, 1)))
    assert multi_label.score("v", list("abcd"), truth, perfect).metrics == {"accuracy": 1, "macro_f1": 1, "map": 1}
    perfect[:30, -1] = 0.9
    metrics = multi_label.score("v", list("abcd"), truth, perfect).metrics
    assert (metrics["accuracy"], metrics["macro_f1"]) == (0.9, 1)


def test_a_draw_counts_a_picture_as_often_as_it_occurs() -> None:
    truth, found, _ = golden(60)
    draws = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), size=5)
    given = multi_label.average_precisions(truth, found[:, :4], draws)
    for draw, row in zip(draws, given, strict=True):
        repeated = np.repeat(np.arange(60), draw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = average_precision_score(truth[repeated], found[repeated, :4], average=None)
        assert row == pytest.approx(wanted)


def test_the_comparison_is_that_of_pictures_drawn_again_one_by_one() -> None:
    truth, ours, theirs = golden()
    found = multi_label.compare(list("abcd"), truth, ours, theirs, np.arange(len(truth)))
    right = [((p[:, :4] >= 0.5) == truth).all(1) for p in (ours, theirs)]
    assert found.only_candidate_right == (right[0] & ~right[1]).sum()
    assert found.only_champion_right == (right[1] & ~right[0]).sum()
    generator, gains = np.random.default_rng(9), []
    for _ in range(300):
        drawn = generator.integers(0, len(truth), len(truth))
        of_both = [multi_label.score("v", list("abcd"), truth[drawn], p[drawn]).metrics for p in (ours, theirs)]
        gains.append({name: of_both[0][name] - of_both[1][name] for name in multi_label.METRICS})
    for name in multi_label.METRICS:
        values = [gain[name] for gain in gains]
        assert found.gains[name].standard_error == pytest.approx(np.std(values), rel=0.2)
        assert found.gains[name].value == pytest.approx(np.mean(values), abs=0.02)
    assert multi_label.compare(list("abcd"), truth, ours, ours, np.arange(len(truth))).gains["map"].value == 0
