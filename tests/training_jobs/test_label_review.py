"""Labels that people reviewed: written down once, applied by every pull, never silently."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobkit import job
from jobkit.bottle import FolderBottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.snapshot import Sample, Snapshot, read_snapshot, write_snapshot
from tests.training_jobs.pictures import picture
from training_jobs import review_labels
from training_jobs.data.label_review import LabelReview, read_reviews, write_reviews
from training_jobs.data.listing import Listed
from training_jobs.data.picture_inspection import Inspected, inspect
from training_jobs.data.selection import Rules, Selection, select
from training_jobs.scoring.golden import describe

GROUP = "animals"
RULES = Rules(min_side=16, max_side=1000, val_part=0.2, golden_part=0.3)
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def listing(**changed: str) -> tuple[list[Listed], dict[str, Inspected]]:
    """Forty pictures of two classes; `changed` gives pictures by their number another label at the source."""
    labels = {str(n): ("ant", "bee")[n % 2] for n in range(40)} | changed
    listed = [Listed(source=f"{n}.png", label=label) for n, label in labels.items()]
    return listed, {entry.source: inspect(entry.source, picture(n), 1000) for n, entry in enumerate(listed)}


def snapshot_of(bottle: FolderBottle, selection: Selection) -> Snapshot:
    summary = write_snapshot(bottle, GROUP, selection.samples, selection.refused)
    return read_snapshot(bottle, GROUP, summary.snapshot_id)


def pulled(bottle: FolderBottle, multi_label: bool = False, **changed: str) -> tuple[Selection, Snapshot]:
    """What a pull makes of the listing and of the reviews in the bottle."""
    selection = select(*listing(**changed), RULES, multi_label=multi_label, reviews=read_reviews(bottle, GROUP))
    return selection, snapshot_of(bottle, selection)


def by_source(snapshot: Snapshot) -> dict[str, Sample]:
    return {sample.source: sample for sample in snapshot.samples}


def review(context: job.Context, snapshot: Snapshot, rows: list[str], by: str = "anna") -> review_labels.Result:
    """Have a person decide: rows of `source,verdict,relabel_to`."""
    samples = by_source(snapshot)
    lines = [f"{samples[row.split(',')[0]].path},{row.split(',', 1)[1]}" for row in rows]
    table = Path(context.directory) / "decisions.csv"
    table.write_text("\n".join(["picture,verdict,relabel_to", *lines]) + "\n")
    arguments = review_labels.Arguments(
        group=GROUP, by=by, decisions=str(table), snapshot_id=snapshot.summary.snapshot_id
    )
    return review_labels.run(arguments, context)


def test_a_pull_applies_what_was_decided_and_says_so(context: job.Context, bottle: FolderBottle) -> None:
    _, before = pulled(bottle)
    result = review(context, before, ["0.png,keep,", "2.png,relabel,bee", "4.png,drop,", "6.png,,bee"])
    assert (result.keep, result.relabel, result.drop, result.skipped) == (1, 1, 1, 1)
    selection, after = pulled(bottle)
    samples = by_source(after)
    assert [(s.source, s.label, s.listed_as) for s in selection.relabeled] == [("2.png", "bee", ("ant",))]
    assert (samples["2.png"].label, samples["2.png"].listed_as) == ("bee", ("ant",)), "the manifest says it for good"
    assert [(r.source, r.reason, r.detail[:7]) for r in selection.refused] == [
        ("4.png", "dropped_in_review", "by anna")
    ]
    assert selection.bad == [], "what a person drops is not bad data"
    assert "4.png" not in samples and len(samples) == 39
    others = {s.source: s for s in before.samples if s.source not in ("2.png", "4.png")}
    assert {name: samples[name] for name in others} == others
    assert pulled(bottle)[1].summary.snapshot_id == after.summary.snapshot_id


def test_a_review_of_a_label_that_the_source_has_changed_since_is_not_applied(
    context: job.Context, bottle: FolderBottle
) -> None:
    review(context, pulled(bottle)[1], ["2.png,relabel,bee", "4.png,drop,", "1.png,keep,", "8.png,relabel,bee"])
    selection, after = pulled(bottle, **{"4": "bee", "1": "ant", "8": "bee"})
    assert [said.split(":")[0] for said in selection.outdated_reviews] == ["1.png", "4.png"]
    assert "anna saw ant, and the source says bee since" in " ".join(selection.outdated_reviews)
    samples = by_source(after)
    assert (samples["4.png"].label, samples["1.png"].label) == ("bee", "ant"), "the source counts"
    assert samples["2.png"].listed_as == ("ant",)
    assert samples["8.png"].listed_as is None, "the source says by now what the person said"


def test_the_latest_review_counts_and_one_of_a_corrected_label_keeps_it_corrected(
    context: job.Context, bottle: FolderBottle
) -> None:
    review(context, pulled(bottle)[1], ["2.png,relabel,bee"])
    review(context, pulled(bottle)[1], ["2.png,keep,"], by="boris")
    _, after = pulled(bottle)
    assert by_source(after)["2.png"].label == "bee", "boris saw it as a bee"
    assert read_reviews(bottle, GROUP)[by_source(after)["2.png"].sha256].by == "boris"
    review(context, after, ["2.png,relabel,ant"], by="clara")
    _, last = pulled(bottle)
    assert (by_source(last)["2.png"].label, by_source(last)["2.png"].listed_as) == ("ant", None)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("2.png,relabel,wasp", r"line 3: relabel_to 'wasp'; the classes are ant, bee"),
        ("2.png,relabel,", r"line 3: relabel_to ''"),
        ("2.png,maybe,", r"line 3: verdict 'maybe'; valid: keep, relabel, drop"),
        ("0.png,drop,", r"line 3: pictures/.* stands there twice"),
    ],
)
def test_of_a_table_with_a_wrong_row_nothing_is_taken(
    context: job.Context, bottle: FolderBottle, row: str, says: str
) -> None:
    _, snapshot = pulled(bottle)
    with pytest.raises(DataValidationError, match=says):
        review(context, snapshot, ["0.png,keep,", row])
    assert read_reviews(bottle, GROUP) == {}


def test_a_picture_of_several_labels_is_relabeled_to_several_or_none(
    context: job.Context, bottle: FolderBottle
) -> None:
    _, before = pulled(bottle, multi_label=True)
    review(context, before, ["2.png,relabel,bee|ant", "4.png,relabel,"])
    samples = by_source(pulled(bottle, multi_label=True)[1])
    assert (samples["2.png"].labels, samples["2.png"].listed_as) == (["ant", "bee"], ("ant",))
    assert (samples["4.png"].labels, samples["4.png"].listed_as) == ([], ("ant",))


def test_a_damaged_record_is_an_error_and_no_decision_is_lost_silently(bottle: FolderBottle) -> None:
    made = LabelReview(sha256="0" * 64, verdict="keep", listed=("a",), labels=("a",), by="anna", at=NOW)
    key = write_reviews(bottle, GROUP, [made])
    assert read_reviews(bottle, GROUP) == {"0" * 64: made}
    bottle.write(key, bottle.read(key)[:50])
    with pytest.raises(DataValidationError, match=r"\.jsonl:1 is damaged"):
        read_reviews(bottle, GROUP)


def test_the_golden_set_says_how_much_of_it_is_reviewed_and_by_whom(context: job.Context, bottle: FolderBottle) -> None:
    _, before = pulled(bottle)
    golden = [sample.source for sample in before.split("golden")]
    assert len(golden) >= 5
    unreviewed = describe(bottle, GROUP, before.split("golden"))
    assert (unreviewed.reviewed, unreviewed.reviewers) == (0, {})
    assert f"the labels of 0 (0%) are reviewed, those of {len(golden)} are not" in unreviewed.sentence
    one, two, three, four = golden[:4]
    other = {"ant": "bee", "bee": "ant"}[by_source(before)[two].label]
    review(context, before, [f"{one},keep,", f"{two},relabel,{other}", f"{three},drop,"])
    review(context, before, [f"{four},keep,"], by="boris")
    now = describe(bottle, GROUP, before.split("golden"))
    assert (now.id, now.reviewed, now.outdated) == (unreviewed.id, 2, 2), "the snapshot still has the old labels"
    _, after = pulled(bottle)
    then = describe(bottle, GROUP, after.split("golden"))
    assert (then.reviewed, then.outdated, then.relabeled, then.pictures) == (3, 0, 1, len(golden) - 1)
    assert then.reviewers == {"anna": 2, "boris": 1}
    assert then.id != now.id, "other labels are another golden set"
    assert describe(bottle, GROUP, after.split("golden")[::-1]).id == then.id


def test_all_golden_pictures_can_be_marked_at_once(context: job.Context, bottle: FolderBottle) -> None:
    _, snapshot = pulled(bottle)
    identifier = snapshot.summary.snapshot_id
    arguments = review_labels.Arguments(group=GROUP, by="anna", keep_all="golden", snapshot_id=identifier)
    result = review_labels.run(arguments, context)
    assert result.golden_reviewed == result.golden_pictures == len(snapshot.split("golden"))
    assert pulled(bottle)[1].summary.snapshot_id == identifier, "a mark changes no data"
    with pytest.raises(ConfigurationError, match="group nothing has no snapshots"):
        review_labels.run(arguments.model_copy(update={"snapshot_id": None, "group": "nothing"}), context)


def test_the_time_of_a_review_decides_and_not_its_place(bottle: FolderBottle) -> None:
    def made(labels: str, at: datetime) -> LabelReview:
        return LabelReview(sha256="0" * 64, verdict="relabel", listed=("a",), labels=(labels,), by="anna", at=at)

    write_reviews(bottle, GROUP, [made("c", NOW), made("b", NOW - timedelta(days=1))])
    assert read_reviews(bottle, GROUP)["0" * 64].labels == ("c",)
