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
    assert done.stdout.splitlines()[:3] == ["group season: 3 new pictures", "  summer: 1", "  winter: 2"], done.stderr
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
    assert add_items(store, "season", items_of_table(tmp_path / "labels.csv"), mode="CHECKING").new == 8
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


def draw(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(number))


def import_from(source: Path, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run("services.collect.importers", str(source), "--directory", str(directory), "--group", "season", *options)


def test_a_folder_with_a_table_in_it_is_read_by_its_table(tmp_path: Path) -> None:
    root = tmp_path / "source"
    draw(root, "pictures/1.png", "pictures/2.png", "pictures/3.png")
    (root / "labels.csv").write_text("path,label\npictures/1.png,winter\npictures/2.png,summer\n")
    done = import_from(root, tmp_path / "c")
    assert done.stdout.splitlines()[:3] == ["group season: 2 new pictures", "  summer: 1", "  winter: 1"], done.stderr
    assert f"left out, since nothing says what they show: 1 .png, for example {root}/pictures/3.png" in done.stdout


def test_a_folder_with_a_table_of_another_name_is_asked_about(tmp_path: Path) -> None:
    root = tmp_path / "source"
    draw(root, "pictures/1.png", "pictures/2.png")
    (root / "metadata.csv").write_text("path,label\npictures/1.png,winter\n")
    done = import_from(root, tmp_path / "c")
    assert done.returncode == 1 and "has metadata.csv: name that file instead of the folder" in done.stderr
    assert Store(tmp_path / "c").groups() == []


def test_a_single_class_is_refused_and_a_second_one_of_the_same_group_is_not(tmp_path: Path) -> None:
    draw(tmp_path / "one", "winter/1.png", "winter/2.png")
    done = import_from(tmp_path / "one", tmp_path / "c")
    assert done.returncode == 1 and "all pictures of season would be of one class, 'winter'" in done.stderr
    assert Store(tmp_path / "c").groups() == []
    assert [path for path in (tmp_path / "c" / "pictures").rglob("*") if path.is_file()] == []
    draw(tmp_path / "two", "winter/1.png", "summer/2.png")
    assert import_from(tmp_path / "two", tmp_path / "c").returncode == 0
    draw(tmp_path / "three", "autumn/7.png")
    done = import_from(tmp_path / "three", tmp_path / "c")
    assert done.stdout.splitlines()[:4] == [
        "group season: 1 new pictures", "  autumn: 1", "  summer: 1", "  winter: 1",
    ]  # fmt: skip


def test_an_import_is_taken_back_and_nothing_that_was_there_before(tmp_path: Path) -> None:
    draw(tmp_path / "first", "winter/1.png", "summer/2.png")
    assert "this is import 1; --undo 1 takes it back" in import_from(tmp_path / "first", tmp_path / "c").stdout
    draw(tmp_path / "more", "winter/1.png", "spring/9.png", "spring/8.png")
    assert "import 2" in import_from(tmp_path / "more", tmp_path / "c").stdout
    again = import_from(tmp_path / "more", tmp_path / "c")
    assert "0 new pictures" in again.stdout and "import 3" not in again.stdout
    store = Store(tmp_path / "c")
    undo = run("services.collect.importers", "--directory", str(tmp_path / "c"), "--undo", "2")
    assert "import 2 is taken back: 2 pictures are gone" in undo.stdout
    assert store.counts("season") == {"summer": 1, "winter": 1}
    assert len([path for path in store.pictures.rglob("*") if path.is_file()]) == 2
    unknown = run("services.collect.importers", "--directory", str(tmp_path / "c"), "--undo", "2")
    assert unknown.returncode == 1 and "there is no import 2; there is: 1" in unknown.stderr
    listed = run("services.collect.importers", "--directory", str(tmp_path / "c"), "--list").stdout
    assert listed.startswith("1: 20") and listed.endswith(f"2 pictures of group season from {tmp_path}/first\n")


def test_pictures_of_one_name_in_several_folders_are_all_kept(tmp_path: Path) -> None:
    draw(tmp_path, "a/1.png", "b/1.png", "c/1.png")
    rows = "path,label,picset\na/1.png,winter,p\nb/1.png,winter,p\nc/1.png,summer,q\n"
    (tmp_path / "labels.csv").write_text(rows)
    store = Store(tmp_path / "store")
    assert add_items(store, "season", items_of_table(tmp_path / "labels.csv")).new == 3
    found = store.by_category(["season"], ["winter"], [])["winter"]
    contents = {(store.pictures / each.filepath).read_bytes() for each in found}
    assert contents == {(tmp_path / name).read_bytes() for name in ("a/1.png", "b/1.png")}


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason=MISSING)
def test_real_photographs_are_imported_from_their_table(tmp_path: Path) -> None:
    with PHOTOGRAPHS.open() as handle:
        rows = list(csv.DictReader(handle))
    store = Store(tmp_path)
    assert add_items(store, "hymenoptera", items_of_table(PHOTOGRAPHS)).new == len(rows)
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
