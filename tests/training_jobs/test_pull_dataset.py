"""`pull_dataset` against the real collect server, PostgreSQL and S3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobkit import database, job
from jobkit.bottle import Bottle, FolderBottle, open_bottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.snapshot import Refused, read_snapshot
from tests.conftest import CollectServer
from tests.training_jobs.pictures import bomb, item, items, picture, publish
from training_jobs import pull_dataset

ROOT = Path(__file__).resolve().parents[2]


def pull(context: job.Context, group: str, **options: object) -> pull_dataset.Result:
    return pull_dataset.run(pull_dataset.Arguments(pipeline="p", group=group, **options), context)


def refused(bottle: Bottle, group: str) -> dict[str, str]:
    lines = bottle.read(f"meta/{group}/refused.jsonl").splitlines()
    found = [Refused.model_validate_json(line) for line in lines]
    return {r.source.rsplit("/", 1)[-1]: r.reason for r in found}


def test_a_pull_makes_a_snapshot_that_can_be_trained_on(
    collect: CollectServer, context: job.Context, bottle: FolderBottle, group: str
) -> None:
    publish(collect, group, items(40))
    result = pull(context, group)
    assert (result.labels, result.pictures, result.transferred, result.is_new) == (["ant", "bee"], 80, 80, True)
    assert result.stop_here is None
    snapshot = read_snapshot(bottle, group, result.snapshot_id)
    for sample in snapshot.samples:
        assert bottle.exists(sample.path)
        assert (sample.width, sample.height) == (32, 32)
    assert all(result.counts[split][label] for split in ("train", "val", "golden") for label in ("ant", "bee"))


def test_only_new_pictures_are_transferred(collect: CollectServer, context: job.Context, group: str) -> None:
    publish(collect, group, items(40))
    first = pull(context, group)
    again = pull(context, group)
    assert (again.transferred, again.is_new, again.snapshot_id) == (0, False, first.snapshot_id)
    publish(collect, group, items(3, start=40))
    more = pull(context, group)
    assert (more.transferred, more.is_new, more.pictures) == (6, True, 86)


def test_a_picture_that_is_gone_from_the_bottle_is_fetched_again(
    collect: CollectServer, context: job.Context, bottle: FolderBottle, group: str
) -> None:
    publish(collect, group, items(40))
    snapshot = read_snapshot(bottle, group, pull(context, group).snapshot_id)
    bottle.delete(snapshot.samples[0].path)
    assert pull(context, group).transferred == 1
    assert bottle.exists(snapshot.samples[0].path)


def test_no_picture_changes_sides_as_the_set_grows(
    collect: CollectServer, context: job.Context, bottle: FolderBottle, group: str
) -> None:
    publish(collect, group, items(40))
    before = {s.sha256: s.split for s in read_snapshot(bottle, group, pull(context, group).snapshot_id).samples}
    publish(collect, group, items(40, start=40) + items(30, classes=("cat", "dog", "wasp"), start=500))
    after = {s.sha256: s.split for s in read_snapshot(bottle, group, pull(context, group).snapshot_id).samples}
    assert len(after) == len(before) + 170
    assert {sha: after[sha] for sha in before} == before


def test_a_picset_stays_on_one_side(
    collect: CollectServer, context: job.Context, bottle: FolderBottle, group: str
) -> None:
    publish(collect, group, items(90, picset_size=3))
    samples = read_snapshot(bottle, group, pull(context, group).snapshot_id).samples
    sides: dict[str, set[str]] = {}
    for sample in samples:
        sides.setdefault(sample.split_group, set()).add(sample.split)
    assert len(sides) == 60
    assert all(len(found) == 1 for found in sides.values())
    assert set.union(*sides.values()) == {"train", "val", "golden"}


def test_damaged_pictures_are_quarantined_with_reasons_and_the_rest_goes_on(
    collect: CollectServer, context: job.Context, bottle: FolderBottle, group: str
) -> None:
    whole = picture(7, 200, "JPEG")
    bad = [
        item("torn.jpg", whole[: len(whole) // 2]),
        item("empty.png", b""),
        item("text.png", b"<html>not found</html>"),
        item("vector.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        item("icon.ico", picture(8, 32, "ICO")),
        item("bomb.png", bomb(50_000)),
        item("tiny.png", picture(9, 8)),
        item("header_only.png", picture(10)[:40]),
    ]
    publish(collect, group, items(40) + bad)
    result = pull(context, group, max_bad_share=0.1)
    assert result.refused == {"corrupt": 4, "too_large": 1, "too_small": 1, "unsupported": 2}
    assert refused(bottle, group) == {
        "torn.jpg": "corrupt",
        "empty.png": "corrupt",
        "text.png": "corrupt",
        "vector.png": "unsupported",
        "icon.ico": "unsupported",
        "bomb.png": "too_large",
        "tiny.png": "too_small",
        "header_only.png": "corrupt",
    }
    key = f"snapshots/{group}/{result.snapshot_id}/refused.jsonl"
    assert b"50000x50000" in bottle.read(key)
    assert b"the format ICO is not one of JPEG" in bottle.read(key)
    assert result.pictures == 80


def test_a_repaired_picture_is_taken_the_next_time(
    collect: CollectServer, context: job.Context, bottle: FolderBottle, group: str
) -> None:
    publish(collect, group, [*items(40), item("torn.jpg", picture(5007)[:50])])
    assert pull(context, group).refused == {"corrupt": 1}
    (torn,) = collect.folder.joinpath("pictures", group).rglob("torn.jpg")
    torn.write_bytes(picture(5007))
    result = pull(context, group)
    assert (result.transferred, result.refused, result.pictures) == (1, {}, 81)


def test_too_many_bad_pictures_refuse_the_pull_with_counts_and_examples(
    collect: CollectServer, context: job.Context, bottle: FolderBottle, group: str
) -> None:
    publish(collect, group, items(40) + [item(f"torn_{n}.png", picture(n)[:60]) for n in range(6)])
    with pytest.raises(DataValidationError, match=r"6 of 86 .* \(6 corrupt\), more than the share of 0\.05") as caught:
        pull(context, group)
    assert str(caught.value).count("torn_") == 3
    assert len(refused(bottle, group)) == 6
    assert list(bottle.keys("snapshots")) == []
    assert pull(context, group, max_bad_share=0.07).pictures == 80


def test_the_same_picture_under_two_labels_is_refused_both_times(
    collect: CollectServer, context: job.Context, bottle: FolderBottle, group: str
) -> None:
    publish(collect, group, [*items(40), item("a.png", picture(5000)), item("b.png", picture(5000), "bee")])
    result = pull(context, group)
    assert result.refused == {"conflicting_labels": 2}
    assert refused(bottle, group) == {"a.png": "conflicting_labels", "b.png": "conflicting_labels"}


def test_a_copy_counts_once(collect: CollectServer, context: job.Context, bottle: FolderBottle, group: str) -> None:
    extra = items(1)[0].content
    publish(collect, group, [*items(40), item("again.png", extra), item("and_again.png", extra)])
    result = pull(context, group, max_bad_share=0.0)
    assert (result.pictures, result.refused) == (80, {"duplicate": 2})


def test_a_near_copy_never_stands_on_the_other_side(
    collect: CollectServer, context: job.Context, bottle: FolderBottle, group: str
) -> None:
    publish(collect, group, items(40))
    before = {s.sha256: s.split for s in read_snapshot(bottle, group, pull(context, group).snapshot_id).samples}
    sizes = [item(f"small_{n}.jpg", picture(n, 300, "JPEG", quality=60), picset=f"copy-{n}") for n in range(12)]
    publish(collect, group, sizes)
    result = pull(context, group)
    assert (result.pictures, result.refused) == (92, {})
    samples = read_snapshot(bottle, group, result.snapshot_id).samples
    sides = {s.source.rsplit("/", 1)[-1]: s.split for s in samples}
    assert all(sides[f"small_{n}.jpg"] == sides[f"ant_{n}.png"] for n in range(12))
    assert {s.sha256: s.split for s in samples if s.sha256 in before} == before
    assert pull(context, group).snapshot_id == result.snapshot_id


def test_a_bottle_of_an_earlier_release_keeps_its_sides(
    collect: CollectServer, context: job.Context, bottle: FolderBottle, group: str
) -> None:
    """It has no record of the split, and its snapshots hold one of each two near copies."""
    sizes = [item(f"small_{n}.jpg", picture(n, 300, "JPEG", quality=60), picset=f"copy-{n}") for n in range(12)]
    publish(collect, group, items(40) + sizes)
    earlier = read_snapshot(bottle, group, pull(context, group, near_copies="drop").snapshot_id)
    bottle.delete(f"meta/{group}/split_groups.json")
    now = read_snapshot(bottle, group, pull(context, group).snapshot_id)
    assert (len(earlier.samples), len(now.samples)) == (80, 92)
    sides = {s.sha256: s.split for s in now.samples}
    assert all(sides[s.sha256] == s.split for s in earlier.samples)


def test_dropped_near_copies_count_towards_a_share_of_their_own(
    collect: CollectServer, context: job.Context, bottle: FolderBottle, group: str
) -> None:
    sizes = [item(f"small_{n}.jpg", picture(n, 300, "JPEG", quality=60), picset=f"copy-{n}") for n in range(12)]
    publish(collect, group, items(40) + sizes)
    with pytest.raises(
        DataValidationError, match=r"12 of 92 .* left out as near copies of others \(12 near_duplicate\)"
    ):
        pull(context, group, near_copies="drop", max_dropped_share=0.1)
    assert not bottle.exists(f"meta/{group}/split_groups.json")
    result = pull(context, group, near_copies="drop", max_bad_share=0.0)
    assert (result.pictures, result.refused) == (80, {"near_duplicate": 12})
    # where a copy and its original fell on different sides, the one in training stays
    samples = {s.source.rsplit("/", 1)[-1]: s.split for s in read_snapshot(bottle, group, result.snapshot_id).samples}
    kept = [name for name in samples if name.startswith("small_")]
    assert kept
    rules = pull_dataset.Rules(16, 10_000, 0.15, 0.15)
    order = ("train", "val", "golden")
    for line in bottle.read(f"meta/{group}/refused.jsonl").splitlines():
        refusal = json.loads(line)
        winner = refusal["detail"].removeprefix("nearly the same as ").rsplit("/", 1)[-1]
        loser_side = rules.side(refusal["source"].split("/")[1])
        assert order.index(samples[winner]) <= order.index(loser_side)


def test_what_is_left_out_is_a_sentence_for_people(collect: CollectServer, context: job.Context, group: str) -> None:
    publish(collect, group, items(40))
    assert pull(context, group).left_out == ""
    publish(collect, group, [item("torn.png", picture(1)[:60]), item("again.png", picture(3))])
    said = pull(context, group).left_out
    assert said.startswith("2 of 82 pictures were left out: 1 corrupt, 1 duplicate. For example ")
    assert "torn.png: corrupt: it does not decode" in said
    assert said.endswith(f"All of them: meta/{group}/refused.jsonl in the bottle.")


def test_trash_is_no_class(collect: CollectServer, context: job.Context, bottle: FolderBottle, group: str) -> None:
    trash = [item(f"trash_{n}.png", picture(7000 + n), "season_Trash", f"t-{n}") for n in range(5)]
    publish(collect, group, items(40) + trash)
    result = pull(context, group)
    assert (result.labels, result.pictures, result.transferred) == (["ant", "bee"], 80, 85)
    legacy = json.loads(bottle.read(f"datasets/{group}.json"))
    table = json.loads(legacy["data"])
    assert (legacy["cat"], legacy["num2label"]) == (group, {"0": "ant", "1": "bee"})
    assert len(table["path"]) == 85
    nothing = [row for row in table["path"] if not table["ant"][row] and not table["bee"][row]]
    assert len(nothing) == 5
    assert all(bottle.exists(f"pictures/{path}") for path in table["path"].values())
    assert legacy["weights"] == [1.0, 1.0]


def test_modes_choose_picsets(collect: CollectServer, context: job.Context, group: str) -> None:
    publish(collect, group, items(40))
    publish(collect, group, items(10, start=40), mode="PREPARING")
    publish(collect, group, items(10, start=60), mode="TRAINED")
    assert pull(context, group).pictures == 100
    assert pull(context, group, modes=["VALIDATED"]).pictures == 80
    assert pull(context, group, modes=["VALIDATED", "TRAINED"]).pictures == 100


def test_metadata_of_picsets_is_kept_and_follows_changes(
    collect: CollectServer, context: job.Context, bottle: FolderBottle, group: str
) -> None:
    publish(collect, group, items(80, picset_size=2))
    pull(context, group)
    metas = [key for key in bottle.keys(f"meta/{group}") if key.endswith("/picset.json")]
    assert len(metas) == 80
    content = json.loads(bottle.read(metas[0]))
    assert content["picset"]["group"] == group
    assert len(content["items"]) == 2
    before = {key: bottle.path(key).stat().st_mtime_ns for key in metas}
    name = json.loads(bottle.read(metas[0]))["items"][0]["origin"]["filepath"].rsplit("_", 1)[-1].removesuffix(".png")
    category = content["picset"]["category"]
    publish(collect, group, [item("new.png", picture(99_999), category, f"{category}-{int(name) // 2}")])
    pull(context, group)
    after = {key: bottle.path(key).stat().st_mtime_ns for key in metas}
    assert [key for key in metas if after[key] != before[key]] == [metas[0]]
    assert len(json.loads(bottle.read(metas[0]))["items"]) == 3


def test_a_group_that_does_not_exist_is_named_with_those_that_do(
    collect: CollectServer, context: job.Context, group: str
) -> None:
    publish(collect, group, items(2))
    with pytest.raises(ConfigurationError, match=f"no group no_such_group; there is: .*{group}"):
        pull(context, "no_such_group")


def test_a_group_with_no_pictures_in_these_modes_is_a_configuration_error(
    collect: CollectServer, context: job.Context, group: str
) -> None:
    publish(collect, group, items(2))
    with pytest.raises(ConfigurationError, match=r"no pictures of group .* in the modes PREPARING"):
        pull(context, group, modes=["PREPARING"])


def test_a_wrong_password_is_a_configuration_error(
    collect: CollectServer, context: job.Context, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_COLLECT_PASSWORD", "another")
    with pytest.raises(ConfigurationError, match="login or password is wrong") as caught:
        pull(context, group)
    assert "another" not in str(caught.value)


def test_one_class_only_is_refused(collect: CollectServer, context: job.Context, group: str) -> None:
    publish(collect, group, items(40, classes=("ant",)))
    with pytest.raises(DataValidationError, match=r"only the class 'ant' \(40 pictures\)"):
        pull(context, group)


@pytest.mark.parametrize("count", [1, 2])
def test_a_class_with_too_few_pictures_is_named(
    collect: CollectServer, context: job.Context, group: str, count: int
) -> None:
    publish(collect, group, items(40) + items(count, classes=("wasp",), start=9000))
    with pytest.raises(DataValidationError, match=rf"'wasp' has {count} in {count} .*, none in ") as caught:
        pull(context, group)
    assert "'ant'" not in str(caught.value)


@pytest.mark.parametrize("outcome", ["promoted", "rejected"])
def test_a_completed_snapshot_is_nothing_new_unless_forced_or_configured_otherwise(
    collect: CollectServer, context: job.Context, group: str, database_url: str, outcome: str
) -> None:
    publish(collect, group, items(40))
    first = pull(context, group, fingerprint="f")
    assert first.stop_here is None
    database.record_run(
        database.PipelineRun(
            pipeline="p", dag_run_id="night-1", outcome=outcome, snapshot_id=first.snapshot_id, fingerprint="f"
        )
    )
    second = pull(context, group, fingerprint="f")
    assert second.stop_here is not None
    assert second.stop_here.outcome == "nothing_new"
    assert "night-1" in second.stop_here.reason
    assert outcome in second.stop_here.reason
    assert pull(context, group, fingerprint="f", force=True).stop_here is None
    assert pull(context, group, fingerprint="g").stop_here is None
    assert pull(context, group, fingerprint="f", snapshot_id=first.snapshot_id).stop_here is None
    publish(collect, group, items(1, start=40))
    assert pull(context, group, fingerprint="f").stop_here is None


def test_a_pinned_snapshot_pulls_nothing(
    collect: CollectServer, context: job.Context, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(collect, group, items(40))
    first = pull(context, group)
    publish(collect, group, items(1, start=40))
    monkeypatch.delenv("NIGHTSHIFT_COLLECT_URL")
    pinned = pull(context, group, snapshot_id=first.snapshot_id)
    assert (pinned.snapshot_id, pinned.pictures, pinned.transferred) == (first.snapshot_id, 80, 0)
    with pytest.raises(DataValidationError, match=f"there is no snapshot feedfeedfeedfeed .*{first.snapshot_id}"):
        pull(context, group, snapshot_id="feedfeedfeedfeed")


def test_a_pull_into_s3_is_the_same_snapshot(
    collect: CollectServer, context: job.Context, group: str, s3_bottle: str, tmp_path: Path
) -> None:
    publish(collect, group, items(40))
    context.bottle = FolderBottle(tmp_path / "other")
    local = pull(context, group)
    context.bottle = open_bottle(s3_bottle)
    remote = pull(context, group)
    assert remote.snapshot_id == local.snapshot_id
    assert pull(context, group).transferred == 0
    assert len(read_snapshot(context.bottle, group, remote.snapshot_id).samples) == 80


def test_a_night_with_nothing_new_is_quick_and_loads_no_heavy_library(
    collect: CollectServer, context: job.Context, group: str, database_url: str, bottle: FolderBottle
) -> None:
    publish(collect, group, items(40))
    first = pull(context, group)
    run = database.PipelineRun(
        pipeline="p", dag_run_id="r", outcome="promoted", snapshot_id=first.snapshot_id, fingerprint=""
    )
    database.record_run(run)
    code = (
        "import sys; from training_jobs.pull_dataset import *; from pathlib import Path;"
        f"result = run(Arguments(pipeline='p', group='{group}'), job.Context(Path('.'), None));"
        "assert result.stop_here.outcome == 'nothing_new';"
        "print([m for m in ('torch', 'mlflow', 'sklearn', 'boto3', 'matplotlib', 'requests') if m in sys.modules])"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_mlflow_gets_the_snapshot_and_its_counts(
    collect: CollectServer, bottle: FolderBottle, group: str, mlflow_url: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    from nightshift_common.task_instance import TaskInstanceKey

    publish(collect, group, [*items(40), item("torn.png", picture(1)[:60])])
    context = job.Context(tmp_path, TaskInstanceKey(dag_id=f"retrain_{group}", run_id="r1", task_id="pull_dataset"))
    result = pull(context, group)
    context.close(succeeded=True)
    stored = MlflowClient(mlflow_url).get_run(context.tracking.run_id)
    assert stored.data.params["snapshot_id"] == result.snapshot_id
    assert stored.data.metrics["pictures"] == 80
    assert stored.data.metrics["refused/corrupt"] == 1
    assert stored.data.metrics["pictures/golden"] == sum(result.counts["golden"].values())
    (used,) = stored.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == (group, result.snapshot_id)


def test_a_table_goes_with_postgres_only() -> None:
    with pytest.raises(ConfigurationError, match="table goes with source postgres"):
        job.parse(pull_dataset.Arguments, ["--pipeline", "p", "--group", "g", "--source", "postgres"])
