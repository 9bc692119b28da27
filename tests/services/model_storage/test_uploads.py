"""What may come in: archives, forms, versions. What is refused leaves no trace."""

import hashlib
import io
import json
import socket
import stat
import struct
import threading
import warnings
import zipfile
from urllib.parse import quote

import httpx
import pytest

from services.model_storage.repository.archive import MAX_ENTRIES
from tests.services.model_storage.support import Storage, model_zip, wait_for, zip_of
from tests.support.tiny_onnx import scaling_config, scaling_model


def with_entry(name: str, mode: int = 0o644, content: bytes = b"x", flags: int = 0) -> bytes:
    """Return a good archive with one more entry."""
    buffer = io.BytesIO(model_zip("m", 2.0))
    with zipfile.ZipFile(buffer, "a") as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        archive.writestr(entry, content)
    data = bytearray(buffer.getvalue())
    if flags:
        at = data.rfind(b"PK\x01\x02")
        data[at + 8 : at + 10] = struct.pack("<H", flags)
    return bytes(data)


def twice() -> bytes:
    with warnings.catch_warnings(action="ignore"):
        return with_entry("meta.json")


def bomb() -> bytes:
    return zip_of({"model.onnx": bytes(80 << 20), "meta.json": "{}"})


def lying_about_its_size() -> bytes:
    data = bytearray(zip_of({"model.onnx": bytes(5000)}))
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = data.find(signature)
        data[at + offset : at + offset + 4] = struct.pack("<L", 100)
    return bytes(data)


def with_huge_directory() -> bytes:
    data = bytearray(model_zip("m", 2.0))
    at = data.rfind(b"PK\x05\x06")
    data[at + 12 : at + 16] = struct.pack("<L", 1 << 30)
    return bytes(data)


def damaged() -> bytes:
    data = bytearray(zip_of({"model.onnx": b"a" * 1000}, zipfile.ZIP_STORED))
    data[100] ^= 0xFF
    return bytes(data)


BAD = {
    "a path upwards": (with_entry("../evil"), "leads out of the folder"),
    "an absolute path": (with_entry("/etc/passwd"), "leads out of the folder"),
    "a path with backslashes": (with_entry("..\\evil"), "leads out of the folder"),
    "a hidden folder": (with_entry("folder/.git/config"), "no leading dot"),
    "code": (zip_of({"model.py": "raise SystemExit", "config.pbtxt": ""}), "MODEL_STORAGE_PYTHON_MODELS"),
    "a symbolic link": (with_entry("link", stat.S_IFLNK | 0o777, b"/etc/passwd"), "link or a special file"),
    "a device": (with_entry("null", stat.S_IFCHR | 0o666), "link or a special file"),
    "a hidden file": (with_entry(".profile"), "no leading dot"),
    "a control character": (with_entry("a\nb"), "printable"),
    "an encrypted file": (with_entry("secret", flags=1), "encrypted"),
    "the service's own file": (with_entry("version.json"), "must not hold one"),
    "one name twice": (twice(), "twice"),
    "names that differ in case only": (with_entry("Meta.json"), "twice"),
    "too many files": (zip_of({str(i): "" for i in range(MAX_ENTRIES + 1)}), "entries"),
    "a directory that fills the memory": (with_huge_directory(), "directory takes"),
    "a bomb": (bomb(), "times its size"),
    "a size that is a lie": (lying_about_its_size(), "damaged"),
    "a damaged file": (damaged(), "damaged"),
    "no zip": (b"not a zip at all", "no zip file"),
    "an empty upload": (b"", "no zip file"),
    "a truncated zip": (model_zip("m", 2.0)[:-30], "no zip file"),
    "an empty zip": (zip_of({}), "is empty"),
    "no model": (zip_of({"meta.json": "{}"}), "exactly one of model.onnx and model.plan and model.pt"),
    "two models": (zip_of({"model.onnx": b"1", "model.plan": b"2"}), "exactly one of"),
    "a meta.json that is no JSON": (model_zip("m", 2.0, **{"meta.json": "{"}), "meta.json is not JSON"),
    "a meta.json that is a list": (model_zip("m", 2.0, **{"meta.json": "[]"}), "must be a JSON object"),
    "a meta.json nested too deep": (model_zip("m", 2.0, **{"meta.json": "[" * 100_000}), "meta.json is not JSON"),
    "a configuration with an unknown key": (
        model_zip("m", 2.0, **{"config.pbtxt": 'nam: "m"'}),
        "no field named",
    ),
    "another model's configuration": (
        model_zip("m", 2.0, **{"config.pbtxt": scaling_config("other")}),
        "is for the model 'other'",
    ),
    "a configuration for another platform": (
        model_zip("m", 2.0, **{"config.pbtxt": 'platform: "tensorrt_plan"'}),
        "names platform 'tensorrt_plan'",
    ),
    "no configuration and no readable graph": (zip_of({"model.onnx": b"no model"}), "not an ONNX model"),
}


@pytest.mark.parametrize("what", BAD)
def test_an_archive_is_refused_before_it_reaches_the_repository(storage: Storage, what: str) -> None:
    archive, reason = BAD[what]
    before = set(storage.repository.iterdir())
    reply = storage.upload("m", archive, "9.9.9")
    assert reply.status_code == 400, reply.text
    assert reason in reply.json()["detail"]
    assert set(storage.repository.iterdir()) == before
    assert list((storage.repository / ".incoming").iterdir()) == []


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", "x" * 101, "a b", "m__candidate", "ü", "a\n"])
def test_a_model_name_that_is_no_folder_is_refused(storage: Storage, name: str) -> None:
    assert storage.upload(name, model_zip("m", 2.0)).status_code == 400
    assert storage.client.post(f"/load_model/{quote(name)}").status_code in (400, 404, 405)


@pytest.mark.parametrize("version", ["1.2.3.4", "../1.2.3", "1.0.0-", "1.0+cu12", "latest", "1" * 10])
def test_a_version_that_is_not_semantic_is_refused(storage: Storage, model: str, version: str) -> None:
    reply = storage.upload(model, model_zip(model, 2.0), version)
    assert (reply.status_code, "semantic version" in reply.json()["detail"]) == (400, True)


def test_the_next_version_follows_the_latest_in_semantic_order(storage: Storage, model: str) -> None:
    for wanted, given in ((None, "0.0.1"), ("next", "0.0.2"), ("0.0.9", "0.0.9"), ("0.0.10", "0.0.10"), ("", "0.0.11")):
        scale = float(given.rsplit(".", 1)[1])
        assert storage.upload(model, model_zip(model, scale), wanted).json() == {"version": given}
    versions = storage.client.get(f"/models/{model}/versions").json()
    assert [(v["version"], v["triton_version"]) for v in versions] == [
        ("0.0.1", 1), ("0.0.2", 2), ("0.0.9", 3), ("0.0.10", 4), ("0.0.11", 5)
    ]  # fmt: skip


def test_the_same_content_again_answers_its_version_even_when_packed_anew(storage: Storage, model: str) -> None:
    archive = model_zip(model, 2.0)
    assert storage.upload(model, archive).json() == {"version": "0.0.1"}
    assert storage.upload(model, archive, "next").json() == {"version": "0.0.1", "already_published": True}
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        files = {name: opened.read(name) for name in reversed(opened.namelist())}
    packed_anew = zip_of(files, zipfile.ZIP_STORED)
    assert storage.upload(model, packed_anew).json() == {"version": "0.0.1", "already_published": True}
    assert storage.service.store.folders(model) == ["1"]


def test_of_two_uploads_of_one_version_at_once_exactly_one_wins(storage: Storage, model: str) -> None:
    replies: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda s=scale: replies.append(storage.upload(model, model_zip(model, s), "0.0.1")))
        for scale in range(8)
    ]
    [thread.start() for thread in threads]
    [thread.join(30) for thread in threads]
    assert sorted(reply.status_code for reply in replies) == [200] + [400] * 7
    assert storage.service.store.folders(model) == ["1"]
    assert list((storage.repository / ".incoming").iterdir()) == []


def test_many_uploads_at_once_under_next_get_a_version_each(storage: Storage, model: str) -> None:
    versions: list[str] = []
    threads = [
        threading.Thread(target=lambda s=scale: versions.append(storage.published(model, s))) for scale in range(8)
    ]
    [thread.start() for thread in threads]
    [thread.join(30) for thread in threads]
    assert sorted(versions) == [f"0.0.{i}" for i in range(1, 9)]


def test_a_version_tells_its_files_checksums_and_meta(storage: Storage, model: str) -> None:
    archive = model_zip(model, 2.0, **{"model.json": "{}"})
    storage.upload(model, archive, sha256=hashlib.sha256(archive).hexdigest())
    version = storage.client.get(f"/models/{model}/versions/0.0.1").json()
    assert version["sha256"] == hashlib.sha256(archive).hexdigest()
    assert version["files"]["model.onnx"]["sha256"] == hashlib.sha256(scaling_model(2.0)).hexdigest()
    assert (version["target"], version["triton_version"]) == ("onnx", 1)
    assert version["meta"] == {"num2label": {"0": "zero"}, "scale": 2.0, "model_version": "0.0.1"}
    assert version["created_at"]


def test_a_wrong_checksum_is_refused(storage: Storage, model: str) -> None:
    reply = storage.upload(model, model_zip(model, 2.0), sha256="0" * 64)
    assert (reply.status_code, "SHA-256" in reply.json()["detail"]) == (400, True)
    assert storage.client.get(f"/models/{model}/versions").status_code == 404


def test_a_version_is_downloaded_as_the_zip_that_can_be_published_again(storage: Storage, model: str) -> None:
    storage.upload(model, model_zip(model, 2.0, **{"labels.txt": "zero"}))
    content = storage.client.get(f"/models/{model}/versions/0.0.1/archive").content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == {"model.onnx", "meta.json", "config.pbtxt", "labels.txt"}
        assert archive.read("model.onnx") == scaling_model(2.0)
        assert json.loads(archive.read("meta.json"))["model_version"] == "0.0.1"
    assert storage.upload(model, content, "1.0.0").json() == {"version": "1.0.0"}


def test_a_file_that_has_rotted_is_never_sent_as_a_whole_archive(storage: Storage, model: str) -> None:
    storage.published(model, 2.0)
    file = storage.repository / model / "1" / "model.onnx"
    file.unlink()
    file.write_bytes(scaling_model(3.0))
    with pytest.raises(httpx.RemoteProtocolError):
        storage.client.get(f"/models/{model}/versions/0.0.1/archive")


def test_a_published_version_cannot_be_changed(storage: Storage, model: str) -> None:
    storage.published(model, 2.0)
    folder = storage.repository / model / "1"
    assert {path.stat().st_mode & 0o222 for path in folder.iterdir()} == {0}


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ({"data": {"model_name": "m"}, "files": {"other": b"x"}}, "no file in the field 'src_file'"),
        ({"data": {"model_name": "m"}}, "multipart/form-data"),
        ({"json": {"model_name": "m"}}, "multipart/form-data"),
        ({"data": {"model_name": "m" * 5000}, "files": {"src_file": b"x"}}, "longer than 4096 bytes"),
        ({"files": [("src_file", b"x"), ("src_file", b"y")]}, "two files"),
        ({"content": b"--b\r\nContent-Dis", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, "cut off"),
        ({"content": b"rubbish", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, "damaged"),
    ],
)
def test_a_form_that_is_wrong_is_refused_with_the_reason(storage: Storage, form: dict, reason: str) -> None:
    reply = storage.client.post("/upload_new_version/", **form)
    assert reply.status_code == 400, reply.text
    assert reason in reply.json()["detail"]


def test_an_upload_that_stops_in_the_middle_leaves_nothing(storage: Storage, model: str) -> None:
    address = httpx.URL(storage.url)
    head = (
        f"POST /upload_new_version/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
        f"Authorization: {storage.client.headers['Authorization']}\r\n"
        f"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        f'Content-Disposition: form-data; name="src_file"; filename="f"\r\n\r\n'
    )
    incoming = storage.repository / ".incoming"
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(head.encode() + bytes(5000))
        wait_for(lambda: list(incoming.iterdir()))
    wait_for(lambda: not list(incoming.iterdir()))
    assert storage.client.get("/health/live").status_code == 200
