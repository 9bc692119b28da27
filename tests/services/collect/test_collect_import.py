"""Importers, the store they write to, and the server as a process."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from nightshift_common.patience import patience
from services.collect.importers import ImportRefused, add_items, items_of_folder, items_of_table
from services.collect.store import Picset, Picture, Store
from tests.support import servers
from tests.support.sample_data import HYMENOPTERA, MISSING

ROOT = Path(__file__).resolve().parents[3]
PHOTOGRAPHS = HYMENOPTERA / "labels.csv"


def picture(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (20, 10), value).save(buffer, "PNG")
    return buffer.getvalue()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_the_digits_become_real_picture_files_once(tmp_path: Path) -> None:
    for new in (1797, 0):
        done = run("services.collect.load_digits", "--directory", str(tmp_path))
        assert done.stdout == f"group digits: {new} new pictures\n", done.stderr
    store = Store(tmp_path)
    found = store.by_category(["digits"], [], ["VALIDATED"])
    data = load_digits()
    assert {label: len(pictures) for label, pictures in found.items()} == {
        str(digit): int((data.target == digit).sum()) for digit in range(10)
    }
    for label, pictures in found.items():
        for each in pictures[::40]:
            with Image.open(store.pictures / each.filepath) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "L", (32, 32))
                number = int(each.filepath.rsplit("_", 1)[-1].removesuffix(".png"))
                assert data.target[number] == int(label)
                small = image.resize((8, 8), Image.Resampling.BOX)
                difference = [
                    abs(a - b * 255 / 16) for a, b in zip(small.tobytes(), data.images[number].ravel(), strict=True)
                ]
                assert sum(difference) / 64 < 16, "the picture shows the digit it says"
    assert {len(p) for _, p in store.picsets(sorted({p.guid for ps in found.values() for p in ps}))} <= {
        1,
        2,
        3,
        4,
        5,
        6,
    }


def test_a_folder_with_a_folder_a_class_is_imported(tmp_path: Path) -> None:
    for name in ("winter/1.png", "winter/2.PNG", "summer/beach/3.jpg", "summer/readme.txt"):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(len(name)))
    done = run(
        "services.collect.importers", str(tmp_path / "source"), "--directory", str(tmp_path / "c"), "--group", "season"
    )
    assert done.stdout == "group season: 3 new pictures\n", done.stderr
    found = Store(tmp_path / "c").by_category(["season"], [], [])
    assert {label: len(pictures) for label, pictures in found.items()} == {"summer": 1, "winter": 2}
    assert (found["summer"][0].width, found["summer"][0].height) == (20, 10)


def test_a_group_that_no_job_could_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source" / "winter").mkdir(parents=True)
    (tmp_path / "source" / "winter" / "1.png").write_bytes(picture(1))
    for group in ("../up", "two words", ""):
        done = run(
            *("services.collect.importers", str(tmp_path / "source")),
            *("--directory", str(tmp_path / "c"), "--group", group),
        )
        assert done.returncode == 1
        assert f"{group!r} is no name for a group: letters, digits" in done.stderr
        assert "Traceback" not in done.stderr
    assert Store(tmp_path / "c").groups() == []


def test_a_table_is_imported_with_its_picsets(tmp_path: Path) -> None:
    with (tmp_path / "labels.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(
            [("path", "label", "picset"), *((f"{n}.png", "ab"[n % 2], f"p{n // 4}") for n in range(8))]
        )
    for n in range(8):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    store = Store(tmp_path / "c")
    assert add_items(store, "season", items_of_table(tmp_path / "labels.csv"), mode="CHECKING") == 8
    found = store.by_category(["season"], [], ["CHECKING"])
    assert {label: len({p.guid for p in pictures}) for label, pictures in found.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\n1.png,a\n", "lacks the column path; it has: file, label"),
        ("path,label\n1.png,a\n2.png,a\n", r"labels\.csv:3: there is no file"),
        ("path,label\n1.png,\n", r"labels\.csv:2: no label"),
        ("", "lacks the column label, path"),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_its_line_and_imports_nothing(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "labels.csv").write_text(content)
    (tmp_path / "1.png").write_bytes(picture())
    store = Store(tmp_path / "c")
    with pytest.raises(ImportRefused, match=message):
        add_items(store, "season", items_of_table(tmp_path / "labels.csv"))
    assert store.groups() == []


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match="no pictures in folders"):
        list(items_of_folder(tmp_path))


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason=MISSING)
def test_real_photographs_are_imported_from_their_table(tmp_path: Path) -> None:
    with PHOTOGRAPHS.open() as handle:
        rows = list(csv.DictReader(handle))
    store = Store(tmp_path)
    assert add_items(store, "hymenoptera", items_of_table(PHOTOGRAPHS)) == len(rows)
    found = store.by_category(["hymenoptera"], [], [])
    assert {label: len(p) for label, p in found.items()} == {
        label: sum(row["label"] == label for row in rows) for label in {row["label"] for row in rows}
    }
    assert all(p.width and p.height for pictures in found.values() for p in pictures)


@pytest.mark.parametrize("filepath", ["../x.png", "/etc/x.png", "a/../../x.png"])
def test_a_picture_cannot_be_written_outside_the_folder(tmp_path: Path, filepath: str) -> None:
    with pytest.raises(ValueError, match="not a path inside"):
        Store(tmp_path / "c").write_picture(filepath, b"x")


def test_a_picset_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path)
    picset = Picset("g1", "season", "winter")
    broken = Picture("b.png", "g1", None, None), object()
    with pytest.raises(AttributeError):
        store.add([picset], broken)  # type: ignore[arg-type]
    assert store.groups() == []


def test_many_may_write_at_the_same_time(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def add(worker: int) -> int:
        picset = Picset(f"g{worker}", "season", "winter")
        return sum(
            store.add([picset], [Picture(f"{worker}/{n}.png", picset.guid, 1, 1)]) for n in range(20) for _ in range(2)
        )

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(add, range(8))) == [20] * 8
    assert len(store.by_category(["season"], [], [])["winter"]) == 160


def test_the_server_shows_what_is_imported_while_it_runs(tmp_path: Path) -> None:
    with servers.collect(tmp_path / "c", "someone", "a secret") as url:
        token = httpx.post(f"{url}/login", json={"login": "someone", "password": "a secret"}).json()["token"]
        query = {"listBy": 0, "categories": [], "groups": ["digits"], "mode": ["VALIDATED"]}
        headers = {"Authorization": f"token {token}"}
        assert httpx.post(f"{url}/meta/pictures", json=query, headers=headers).status_code == 404
        assert run("services.collect.load_digits", "--directory", str(tmp_path / "c")).returncode == 0
        data = httpx.post(f"{url}/meta/pictures", json=query, headers=headers).json()["data"]
        assert sorted(data) == [str(n) for n in range(10)]
        path = data["7"]["pictures"][0]["filepath"]
        assert httpx.get(f"{url}/files/{path}").content.startswith(b"\x89PNG")


def test_the_server_does_not_start_without_a_password(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NIGHTSHIFT_COLLECT")}
    done = subprocess.run(
        [sys.executable, "-m", "services.collect", "--directory", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=patience(60),
    )  # fmt: skip
    assert done.returncode == 1
    assert "NIGHTSHIFT_COLLECT_LOGIN and NIGHTSHIFT_COLLECT_PASSWORD" in done.stderr
