"""The S3 back end: the same service on a bucket that the real Triton reads, and an S3 that fails."""

import threading
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import boto3
import httpx
import pytest

from local.triton import TritonServer
from services.model_storage.errors import Unavailable
from services.model_storage.repository import s3_store
from services.model_storage.repository.s3_store import S3Store
from tests.services.model_storage.s3_server import S3Server, s3_server
from tests.services.model_storage.signing import package, sign
from tests.services.model_storage.support import Database, Storage, model_zip, serving, settings_for, zip_of
from tests.support.servers import free_ports
from tests.support.signing_keys import Key
from tests.support.tiny_onnx import scaling_config, scaling_model

BUCKET = "models"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": running.url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield running


@pytest.fixture(autouse=True)
def no_faults_left(server: S3Server) -> Iterator[None]:
    yield
    assert server.faults == [], "a fault that never happened tests nothing"


class TritonOnS3(TritonServer):
    address = ""

    def command(self) -> list[str]:
        own = f"--model-repository={self.repository}"
        return [f"--model-repository={self.address}" if part == own else part for part in super().command()]


@pytest.fixture(scope="module")
def triton(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("triton")
    running = TritonOnS3(folder / "unused", folder / "state", *free_ports(3), log=folder / "triton.log")
    running.address = f"s3://{server.url}/{BUCKET}/shared"
    boto3.client("s3").put_object(Bucket=BUCKET, Key="shared/.keep", Body=b"")
    running.start()
    running.wait_ready()
    yield running
    running.stop(0.1)


@pytest.fixture(scope="module")
def on_s3(database: Database, triton: TritonServer) -> Iterator[Storage]:
    settings = settings_for(triton, database.new(), repository=f"s3://{BUCKET}/shared")
    with serving(triton, settings) as storage:
        yield storage


@pytest.fixture
def store(server: S3Server) -> Iterator[S3Store]:
    opened = S3Store(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    yield opened
    opened.close()


def keys(prefix: str) -> list[str]:
    page = boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return [entry["Key"].removeprefix(prefix) for entry in page.get("Contents", [])]


def test_versions_in_a_bucket_are_published_served_staged_and_rolled_back(on_s3: Storage, model: str) -> None:
    for scale in (2.0, 3.0):
        version = on_s3.published(model, scale)
        assert on_s3.promote(model, version).status_code == 200
        assert on_s3.scale_served(model) == scale
    assert on_s3.upload(model, model_zip(model, 3.0)).json() == {"version": "0.0.2", "already_published": True}
    refused = on_s3.upload(model, model_zip(model, 4.0), "0.0.2")
    assert (refused.status_code, refused.json()["detail"]) == (400, "This model version already exists.")
    staged = on_s3.client.post(f"/models/{model}/versions/0.0.1/stage")
    assert staged.status_code == 200, staged.text
    assert on_s3.scale_served(f"{model}__candidate") == 2.0
    assert on_s3.client.delete(f"/models/{model}/stage").json() == {"removed": True}
    assert keys(f"shared/{model}__candidate/") == []
    assert on_s3.client.post(f"/models/{model}/rollback").json()["version"] == "0.0.1"
    assert on_s3.scale_served(model) == 2.0
    content = on_s3.client.get(f"/models/{model}/versions/0.0.2/archive").content
    with zipfile.ZipFile(BytesIO(content)) as archive:
        assert archive.read("model.onnx") == scaling_model(3.0)


def test_two_services_on_one_bucket_agree_on_who_has_a_version(
    on_s3: Storage, database: Database, triton: TritonServer, model: str
) -> None:
    settings = settings_for(triton, database.new(), repository=f"s3://{BUCKET}/shared")
    with serving(triton, settings) as other, ExitStack() as stack:
        replies: list[httpx.Response] = []

        def upload(storage: Storage, scale: float, version: str | None) -> None:
            replies.append(storage.upload(model, model_zip(model, scale), version))

        for version in ("5.0.0", None):
            replies.clear()
            threads = [
                threading.Thread(target=upload, args=(storage, scale, version))
                for scale in (1.0, 2.0, 3.0)
                for storage in (on_s3, other)
            ]
            [thread.start() for thread in threads]
            [thread.join(30) for thread in threads]
            stack.pop_all()
            if version:
                assert sorted(reply.status_code for reply in replies) == [200] + [400] * 5
            else:
                # One of the three contents is 5.0.0 already; the two others get a version each, whoever sends them.
                assert {reply.json()["version"] for reply in replies} == {"5.0.0", "5.0.1", "5.0.2"}
        listed = [record.version for record in on_s3.service.catalog.versions(model)]
        assert listed == [record.version for record in other.service.catalog.versions(model)]
        folders = {str(record.triton_version) for record in on_s3.service.catalog.versions(model)}
        assert set(on_s3.service.store.folders(model)) == folders


@pytest.mark.parametrize("fault", ["500", "lost answer"])
@pytest.mark.parametrize("part", ["model.onnx", ".versions", ".claim", "config.pbtxt"])
def test_a_write_that_fails_or_whose_answer_is_lost_is_made_again(
    on_s3: Storage, server: S3Server, model: str, part: str, fault: str
) -> None:
    server.fail("PUT", part, fault)
    assert on_s3.upload(model, model_zip(model, 2.0)).json() == {"version": "0.0.1"}
    assert len(on_s3.client.get(f"/models/{model}/versions").json()) == 1


def test_an_s3_that_goes_on_failing_is_a_503_and_leaves_no_half_version(
    on_s3: Storage, server: S3Server, model: str
) -> None:
    server.fail("PUT", f"{model}/1/model.onnx", "500", times=4)
    reply = on_s3.upload(model, model_zip(model, 2.0))
    assert (reply.status_code, "S3" in reply.json()["detail"]) == (503, True)
    assert keys(f"shared/{model}/") == []
    assert on_s3.published(model, 2.0) == "0.0.1"


def test_a_changed_file_gets_another_time_since_triton_sees_changes_by_whole_seconds(store: S3Store) -> None:
    times = []
    for content in (b"1", b"2", b"3"):
        store.write("m/config.pbtxt", content)
        times.append(store._changed("m/config.pbtxt"))
        assert store.read("m/config.pbtxt") == content
    assert len(set(times)) == 3


def test_a_body_that_is_cut_off_is_read_again(store: S3Store, server: S3Server) -> None:
    store.write("m/file", b"content" * 100)
    server.fail("GET", "m/file", "cut")
    assert store.read("m/file") == b"content" * 100
    server.fail("GET", "m/file", "cut", times=3)
    with pytest.raises(Unavailable, match="did not send m/file completely"):
        store.read("m/file")
    assert store.read("m/none") is None


def test_a_download_that_is_cut_off_is_not_taken_for_a_whole_one(on_s3: Storage, server: S3Server, model: str) -> None:
    on_s3.published(model, 2.0)
    server.fail("GET", f"{model}/1/model.onnx", "cut")
    with pytest.raises(httpx.RemoteProtocolError):
        on_s3.client.get(f"/models/{model}/versions/0.0.1/archive")


def test_an_upload_that_was_given_up_goes_after_an_hour_and_not_before(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create("m/1/.claim", b"someone")
    store.write("m/1/model.onnx", b"half")
    store.create("m/2/.claim", b"someone else")
    store.write("m/2/version.json", b"{}")
    store.clean()
    assert store.folders("m") == ["1", "2"]
    monkeypatch.setattr(s3_store, "ABANDONED", timedelta(seconds=-2))
    store.clean()
    assert store.folders("m") == ["2"]


def test_a_bucket_that_is_not_there_makes_the_service_not_ready(
    server: S3Server, database: Database, triton: TritonServer
) -> None:
    settings = settings_for(triton, database.new(), repository="s3://nowhere/models")
    with serving(triton, settings) as storage:
        reply = storage.client.get("/health/ready")
        assert (reply.status_code, "S3" in reply.json()["repository"]) == (503, True)


def test_a_signed_version_that_was_altered_in_the_bucket_is_not_loaded_and_one_that_cannot_be_read_is_tried_again(
    database: Database, triton: TritonServer, server: S3Server, model: str, tmp_path: Path
) -> None:
    key = Key(tmp_path / "key")
    signatures = {"signatures": "require", "public_keys": key.one_line}
    settings = settings_for(triton, database.new(), repository=f"s3://{BUCKET}/shared", **signatures)
    with serving(triton, settings) as storage:
        for scale in (2.0, 3.0):
            storage.upload(model, zip_of(sign(key, package(model, scale), model, tmp_path / str(scale))))
        server.fail("GET", f"{model}/1/model.onnx", "cut")
        unread = storage.promote(model, "0.0.1")
        assert unread.status_code == 503 and "model.onnx could not be read" in unread.text
        assert storage.promote(model, "0.0.1").status_code == 200
        assert storage.scale_served(model) == 2.0
        altered = package(model, 4.0)["model.onnx"]
        boto3.client("s3").put_object(Bucket=BUCKET, Key=f"shared/{model}/2/model.onnx", Body=altered)
        refused = storage.promote(model, "0.0.2")
        assert refused.status_code == 400 and "model.onnx was altered" in refused.text
        assert storage.scale_served(model) == 2.0


def test_a_round_lists_the_bucket_once_however_many_models_there_are(on_s3: Storage, model: str) -> None:
    for name in (model, f"{model}b", f"{model}c"):
        on_s3.promote(name, on_s3.published(name, 2.0))
    production, store = on_s3.service.production, on_s3.service.store
    not_published = f"{model}d"  # somebody's own, served beside those
    store.create(f"{not_published}/config.pbtxt", scaling_config(not_published).encode())
    store.create(f"{not_published}/1/model.onnx", scaling_model(5.0))
    production.fleet.servers[0].serve(not_published, 1)
    production.reconcile()
    asked: list[str] = []

    def note(params: dict[str, object], **_: object) -> None:
        if threading.current_thread() is threading.main_thread():  # the watch has rounds of its own
            asked.append(f"{params['method']} {params['url']}")

    events = store._client.meta.events
    events.register("before-call.s3", note, unique_id="noted")
    try:
        assert production.reconcile() == []
    finally:
        events.unregister("before-call.s3", unique_id="noted")
    assert len(asked) == 1, asked
    assert "list-type=2" in asked[0]
    assert on_s3.scale_served(not_published) == 5.0


def test_a_version_in_a_bucket_with_folders_is_served_and_can_be_deleted(on_s3: Storage, model: str) -> None:
    on_s3.promote(model, on_s3.published(model, 2.0))
    on_s3.promote(model, on_s3.published(model, 3.0))
    assert on_s3.upload(model, model_zip(model, 4.0, **{"more/labels.txt": "zero"})).json()["version"] == "0.0.3"
    assert on_s3.client.post(f"/models/{model}/versions/0.0.3/stage").status_code == 200
    assert on_s3.scale_served(f"{model}__candidate") == 4.0
    assert "3/more/labels.txt" in keys(f"shared/{model}__candidate/")
    assert on_s3.client.delete(f"/models/{model}/stage").status_code == 200
    done = on_s3.client.delete(f"/models/{model}/versions", params={"older_than_days": 0}).json()
    assert done["deleted"] == ["0.0.3"]
    assert keys(f"shared/{model}/3/") == []
