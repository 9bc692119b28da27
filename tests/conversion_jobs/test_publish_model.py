"""Publishing: the next version, once for the same content, registered in MLflow; storage that is away is waited for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from jobkit.errors import ConfigurationError, DataValidationError, TransientError
from jobkit.experiment import Experiment
from jobkit.job import Context
from nightshift_common.task_instance import TaskInstanceKey
from tests.conversion_jobs.conftest import Trained
from tests.conversion_jobs.serving import Serving
from tests.support.servers import ROOT, free_port
from tests.support.signing_keys import Key
from tests.support.trained import write_experiment


def another_model(trained: Trained, seed: int) -> None:
    """Train, export and verify the experiment anew, with other weights."""
    write_experiment(trained.bottle, trained.experiment, trained.snapshot_id, seed)
    trained.export()
    trained.verify()


def test_versions_count_up_and_the_same_content_keeps_its_version(
    verified: Trained, served: Serving, model: str
) -> None:
    first = verified.publish(model)
    assert (first.version, first.triton_version, first.already_published) == ("0.0.1", 1, False)
    again = verified.publish(model)
    assert (again.version, again.triton_version, again.already_published) == ("0.0.1", 1, True)
    another_model(verified, 4)
    second = verified.publish(model)
    assert (second.version, second.triton_version, second.already_published) == ("0.0.2", 2, False)
    record = served.get(f"/models/{model}/versions/0.0.2").json()
    assert record["meta"]["snapshot_id"] == verified.snapshot_id
    assert set(record["files"]) == {
        "config.pbtxt", "labels.txt", "meta.json", "model.json", "model.onnx", "model.sig", "provenance.json",
        "sbom.cdx.json",
    }  # fmt: skip


def test_an_archive_that_is_not_the_packaged_one_is_refused(verified: Trained, served: Serving, model: str) -> None:
    package = verified.package(model)
    verified.bottle.write(package.archive, b"another run's archive")
    verified.package = lambda *_: package  # type: ignore[method-assign]
    with pytest.raises(DataValidationError, match="another run has packaged over it"):
        verified.publish(model)
    assert served.get(f"/models/{model}/versions").status_code == 404


def test_a_storage_that_is_away_is_tried_again_and_a_refused_token_is_not(
    verified: Trained, served: Serving, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_TOKEN", "not a token")
    with pytest.raises(ConfigurationError, match=r"answered 401.*NIGHTSHIFT_STORAGE_TOKEN"):
        verified.publish(model)
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TransientError, match="did not answer POST /upload_new_version/"):
        verified.publish(model)
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_URL", "model-storage")
    with pytest.raises(ConfigurationError, match="NIGHTSHIFT_STORAGE_URL=model-storage is not an address"):
        verified.publish(model)


def test_the_version_is_registered_in_mlflow_once(
    verified: Trained, served: Serving, model: str, mlflow_url: str, tmp_path: Path
) -> None:
    task_instance = TaskInstanceKey(dag_id=f"retrain_{model}", run_id="manual__1", task_id="publish_model")
    for _attempt in (1, 2):
        verified.context = Context(tmp_path / "job", task_instance)
        verified.context.bottle = verified.bottle
        published = verified.publish(model)
        verified.deploy(published.version, model)
        verified.context.close(succeeded=True)
    client = MlflowClient(mlflow_url)
    (version,) = client.search_model_versions(f"name='{model}'")
    assert version.tags["semantic_version"] == "0.0.1"
    assert version.tags["snapshot_id"] == verified.snapshot_id
    assert version.tags["experiment"] == Experiment(verified.experiment).folder
    assert version.tags["archive"] == f"{served.url}/models/{model}/versions/0.0.1/archive"
    assert served.get(f"/history/{model}").json()[0]["run_id"] == "manual__1"


def test_a_version_is_signed_and_says_what_it_was_made_from_and_who_passed_it(
    verified: Trained, served: Serving, model: str, signing_key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = {"commit": "1" * 40 + "-dirty", "lock_sha256": "2" * 64}
    verified.bottle.write(Experiment(verified.experiment).metrics, json.dumps({"provenance": trained}))
    verified.bottle.write("evaluations/e.json", json.dumps({"model_name": model, "pictures": 3, "slices": {}}))
    monkeypatch.setenv("NIGHTSHIFT_COMMIT", "3" * 40)
    verified.context.task_instance = None
    published = verified.publish(
        model, evaluation="evaluations/e.json", decision="promote", reasons="macro_f1 0.9 reaches the floor of 0.8"
    )
    assert published.signed
    record = served.get(f"/models/{model}/versions/{published.version}").json()
    assert record["signed_by"] == hashlib.sha256(signing_key.public.read_bytes()).hexdigest()
    said = record["provenance"]
    assert said["predicateType"] == "https://slsa.dev/provenance/v1"
    onnx = record["files"]["model.onnx"]["sha256"]
    assert said["subject"] == [{"name": "model.onnx", "digest": {"sha256": onnx}}]
    built = said["predicate"]["buildDefinition"]
    assert built["externalParameters"] == {
        "model": model, "target": "onnx", "experiment": verified.experiment, "snapshot_id": verified.snapshot_id
    }  # fmt: skip
    code, lock, own_code, own_lock, snapshot = built["resolvedDependencies"]
    assert (code["digest"], code["annotations"]) == ({"gitCommit": "1" * 40}, {"changed": True})
    assert (lock["digest"], own_code["digest"]) == ({"sha256": "2" * 64}, {"gitCommit": "3" * 40})
    assert own_lock["digest"] == {"sha256": hashlib.sha256((ROOT / "requirements/jobs.txt").read_bytes()).hexdigest()}
    assert snapshot["uri"].endswith(verified.snapshot_id)
    onnx_verdict, evaluated, gate = said["predicate"]["runDetails"]["byproducts"]
    assert onnx_verdict["annotations"]["sha256"] == onnx and onnx_verdict["annotations"]["passed"]
    assert {verdict["passed"] for verdict in onnx_verdict["annotations"]["verdicts"]} == {True}
    assert evaluated["digest"] == {
        "sha256": hashlib.sha256(verified.bottle.read("evaluations/e.json")).hexdigest()
    }  # fmt: skip
    assert gate["annotations"]["decision"] == "promote" and gate["annotations"]["reasons"].startswith("macro_f1")


def test_a_key_in_one_line_signs_and_a_key_that_is_none_is_refused(
    verified: Trained, served: Serving, model: str, signing_key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = signing_key.private.read_text().splitlines()
    monkeypatch.setenv("NIGHTSHIFT_SIGNING_KEY", "".join(lines[1:-1]))
    assert verified.publish(model).signed
    for wrong in ("no key", signing_key.public.read_text()):
        monkeypatch.setenv("NIGHTSHIFT_SIGNING_KEY", wrong)
        with pytest.raises(ConfigurationError, match="the key in NIGHTSHIFT_SIGNING_KEY cannot sign") as refused:
            verified.publish(model)
        assert wrong not in str(refused.value)


def test_without_a_key_the_package_goes_unsigned_and_a_storage_that_asks_for_signatures_refuses_it(
    verified: Trained, served: Serving, model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NIGHTSHIFT_SIGNING_KEY")
    with pytest.raises(DataValidationError, match=r"is not signed .*conversion_jobs\.sign_package"):
        verified.publish(model)
    assert "the package is not signed: there is no NIGHTSHIFT_SIGNING_KEY" in caplog.text
    assert served.get(f"/models/{model}/versions").status_code == 404


def test_the_key_is_in_no_file_while_a_package_is_signed(
    verified: Trained, served: Serving, model: str, signing_key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    written: list[bytes] = []
    monkeypatch.setattr(
        "model_signing.signing.Config.sign",
        lambda *_: written.extend(path.read_bytes() for path in folder.rglob("*") if path.is_file()),
    )
    with pytest.raises(FileNotFoundError):
        verified.publish(model)  # the double writes no signature
    assert written and not any(b"PRIVATE KEY" in content for content in written)
