"""`pull_dataset` from a PostgreSQL table."""

from __future__ import annotations

from pathlib import Path

import psycopg2
import pytest
from psycopg2.extras import execute_values

from jobkit import job
from jobkit.bottle import FolderBottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.snapshot import read_snapshot
from tests.conftest import CollectServer
from tests.training_jobs.pictures import items, picture, publish
from training_jobs import pull_dataset


def table(url: str, columns: str, rows: list[tuple[object, ...]], name: str = "public.labels") -> None:
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {name.partition('.')[0]}")
        cursor.execute(f"CREATE TABLE {name} ({columns})")
        if rows:
            execute_values(cursor, f"INSERT INTO {name} VALUES %s", rows)
    connection.close()


def pull(context: job.Context, group: str, name: str = "labels", **options: object) -> pull_dataset.Result:
    arguments = pull_dataset.Arguments(pipeline="p", group=group, source="postgres", table=name, **options)
    return pull_dataset.run(arguments, context)


def test_paths_may_be_bottle_keys_local_files_and_addresses(
    database_url: str, collect: CollectServer, context: job.Context, bottle: FolderBottle, group: str, tmp_path: Path
) -> None:
    rows: list[tuple[object, ...]] = []
    for number, item in enumerate(items(40)):
        if number % 4 == 0:
            bottle.write(f"incoming/{item.name}", item.content)
            path = f"incoming/{item.name}"
        elif number % 4 == 3:
            publish(collect, group, [item])
            (served,) = (collect.folder / "pictures" / group).rglob(item.name)
            path = f"{collect.url}/files/{served.relative_to(collect.folder / 'pictures')}"
        else:
            file = tmp_path / "with space" / item.name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(item.content)
            path = file.as_uri() if number % 4 == 1 else str(file)
        rows.append((path, item.category))
    table(database_url, "path text, label text", rows)
    result = pull(context, group)
    assert (result.pictures, result.transferred, result.refused) == (80, 80, {})
    assert pull(context, group).transferred == 0
    assert all(bottle.exists(s.path) for s in read_snapshot(bottle, group, result.snapshot_id).samples)


@pytest.mark.parametrize("column", ["split_group", "picset"])
def test_a_split_group_stays_on_one_side(
    database_url: str, context: job.Context, bottle: FolderBottle, group: str, column: str
) -> None:
    rows = []
    for number, item in enumerate(items(60)):
        bottle.write(f"incoming/{item.name}", item.content)
        rows.append((f"incoming/{item.name}", item.category, number // 2))
    table(database_url, f"path text, label text, {column} int", rows)
    samples = read_snapshot(bottle, group, pull(context, group).snapshot_id).samples
    sides: dict[str, set[str]] = {}
    for sample in samples:
        sides.setdefault(sample.split_group, set()).add(sample.split)
    assert len(sides) == 60
    assert all(len(found) == 1 for found in sides.values())


def test_labels_may_be_numbers_rows_without_one_are_left_out_and_schemas_are_found(
    database_url: str, context: job.Context, bottle: FolderBottle, group: str
) -> None:
    rows: list[tuple[object, ...]] = [("incoming/unlabeled.png", None)]
    for item in items(40):
        bottle.write(f"incoming/{item.name}", item.content)
        rows.append((f"incoming/{item.name}", 3 if item.category == "ant" else 7))
    table(database_url, "path text, label int", rows, "season.labels")
    result = pull(context, group, "season.labels")
    assert (result.labels, result.pictures, result.refused) == (["3", "7"], 80, {})


def test_pictures_that_are_not_there_are_refused_as_missing(
    database_url: str, context: job.Context, bottle: FolderBottle, group: str, tmp_path: Path
) -> None:
    rows = []
    for item in items(40):
        bottle.write(f"incoming/{item.name}", item.content)
        rows.append((f"incoming/{item.name}", item.category))
    for path in ("incoming/none.png", "/no/such/file.png", str(tmp_path), "../../../etc/hostname"):
        rows.append((path, "ant"))
    table(database_url, "path text, label text", rows)
    assert pull(context, group).refused == {"missing": 4}


@pytest.mark.parametrize("name", ["labels; DROP TABLE labels", 'a"b', "a.b.c", "", "1abc", "ж", "labels--", "a b"])
def test_a_table_name_that_is_none_never_reaches_the_database(
    database_url: str, context: job.Context, group: str, name: str
) -> None:
    table(database_url, "path text, label text", [("x.png", "ant")])
    with pytest.raises((ConfigurationError, ValueError), match="table"):
        pull(context, group, name)
    with pytest.raises(DataValidationError, match="1 missing"):  # the table is still there
        pull(context, group)


def test_a_table_that_is_not_there_is_named_with_those_that_are(
    database_url: str, context: job.Context, group: str
) -> None:
    table(database_url, "path text, label text", [])
    with pytest.raises(ConfigurationError, match=r"no table public\.footwear; the tables of public: labels"):
        pull(context, group, "footwear")
    with pytest.raises(ConfigurationError, match="is empty"):
        pull(context, group)


def test_a_missing_column_is_named(database_url: str, context: job.Context, group: str) -> None:
    table(database_url, "file text, label text", [("x", "ant")])
    with pytest.raises(ConfigurationError, match="lacks the column path; it has: file, label"):
        pull(context, group)


def test_a_row_without_a_path_is_refused(database_url: str, context: job.Context, group: str) -> None:
    table(database_url, "path text, label text", [("x", "ant"), (None, "ant"), ("", "bee")])
    with pytest.raises(DataValidationError, match=r"2 of 3 rows of public\.labels have no path"):
        pull(context, group)


def test_pictures_in_a_table_are_judged_as_any_other(
    database_url: str, context: job.Context, bottle: FolderBottle, group: str
) -> None:
    rows = []
    for item in items(40):
        bottle.write(f"incoming/{item.name}", item.content)
        rows.append((f"incoming/{item.name}", item.category))
    bottle.write("incoming/torn.png", picture(900)[:70])
    rows += [("incoming/torn.png", "ant"), ("incoming/ant_0.png", "bee")]
    table(database_url, "path text, label text", rows)
    assert pull(context, group).refused == {"corrupt": 1, "conflicting_labels": 2}
