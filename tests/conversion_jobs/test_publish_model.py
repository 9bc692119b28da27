"""Publishing: the next version, once for the same content, registered in MLflow; storage that is away is waited for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

from conversion_jobs.publishing.model_card import Evaluated, Verdict, model_card
from jobkit.errors import ConfigurationError, DataValidationError, TransientError
from jobkit.experiment import Experiment
from jobkit.job import Context
from jobkit.tracking import Run
from nightshift_common.task_instance import TaskInstanceKey
from tests.conversion_jobs.conftest import Trained
from tests.conversion_jobs.serving import Serving
from tests.support.servers import ROOT, free_port
from tests.support.signing_keys import Key
from tests.support.trained import write_experiment

EVALUATION = {
    "pictures": 30, "labels": ["circle", "cross", "square"],
    "candidate": {
        "version": "new", "metrics": {"accuracy": 0.9}, "confusion": [[10, 0, 0, 0], [1, 8, 1, 0], [0, 0, 9, 1]]
    },
    "champion": {"version": "0.0.0", "metrics": {"accuracy": 0.8}},
}  # fmt: skip


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
        "sbom.cdx.json", "verified.npz",
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
    training = Run.start(dataclasses.replace(task_instance, task_id="train"))
    training.training_of(verified.experiment, "digits", verified.snapshot_id, str(verified.bottle), {"epochs": 2})
    verified.bottle.write("evaluations/e.json", json.dumps(EVALUATION))
    said = {"evaluation": "evaluations/e.json", "decision": "promote", "reasons": "accuracy 0.9000 reaches the floor"}
    for _attempt in (1, 2):
        verified.context = Context(tmp_path / "job", task_instance)
        verified.context.bottle = verified.bottle
        published = verified.publish(model, **said)
        verified.deploy(published.version, model)
        verified.context.close(succeeded=True)
    client = MlflowClient(mlflow_url)
    (version,) = client.search_model_versions(f"name='{model}'")
    assert version.tags["semantic_version"] == "0.0.1"
    assert version.tags["snapshot_id"] == verified.snapshot_id
    assert version.tags["experiment"] == Experiment(verified.experiment).folder
    assert version.tags["archive"] == f"{served.url}/models/{model}/versions/0.0.1/archive"
    assert served.get(f"/history/{model}").json()[0]["run_id"] == "manual__1"
    assert version.run_id == training.run_id
    for line in (
        f"# {model} 0.0.1",
        f"snapshot `{verified.snapshot_id}` of group digits",
        "The gate said **promote**: accuracy 0.9000 reaches the floor.",
        "| accuracy | 0.9000 | 0.8000 |",
        "| cross | 1 | 8 | 1 | 0 |",
        f"--model_name {model} --picture picture.jpg",
        "Classes, in order: circle, cross, square.",
    ):
        assert line in version.description
    files = Path(client.download_artifacts(training.run_id, "versions/0.0.1", str(tmp_path)))
    assert (files / "model_card.md").read_text() == version.description
    assert version.source.endswith(f"/{training.run_id}/artifacts/versions/0.0.1")
    described = yaml.safe_load((files / "MLmodel").read_text())["metadata"]
    meta = json.loads((files / "meta.json").read_text())
    assert described["graph"] == {side: meta[side] for side in ("inputs", "outputs")}
    assert described["graph"]["inputs"][0]["shape"] == [-1, 3, 32, 32]


def test_a_version_that_was_not_trained_here_is_one_of_the_run_that_published_it(
    verified: Trained, served: Serving, model: str, mlflow_url: str, tmp_path: Path
) -> None:
    other = f"{Experiment(verified.experiment).folder}_imported"
    Run.start(None).training_of(other, "digits", None, str(verified.bottle), {})
    verified.context = Context(tmp_path / "job", TaskInstanceKey(f"convert_{model}", "manual__1", "publish_model"))
    verified.context.bottle = verified.bottle
    verified.publish(model)
    (version,) = MlflowClient(mlflow_url).search_model_versions(f"name='{model}'")
    assert version.run_id == verified.context.tracking.run_id
    assert "Verdict" not in version.description and "Confusion" not in version.description


def test_a_card_of_many_classes_lists_their_most_frequent_confusions_and_fits() -> None:
    labels = [f"class {number}" for number in range(400)]
    confusion = np.zeros((400, 401), int)
    np.fill_diagonal(confusion, 9)
    confusion[3, 5], confusion[7, 400] = 4, 6
    candidate = {"version": "new", "metrics": {"accuracy": 0.9}, "confusion": confusion.tolist()}
    found = Evaluated.model_validate({"pictures": 9, "labels": labels, "candidate": candidate, "champion": None})
    tensor = {"name": "input", "dtype": "float32", "shape": [-1, 3, 8, 8]}
    meta = {
        "snapshot_id": None, "group": "g", "architecture": "a", "experiment": "models/g/v__1", "labels": labels,
        "inputs": [tensor], "outputs": [tensor],
    }  # fmt: skip
    verdict = Verdict(evaluated=found, decision=None, reasons=None)
    card = model_card("m", "0.0.1", "onnx", meta, verdict)
    assert card.endswith("| class 7 | another class | 6 |\n| class 3 | class 5 | 4 |\n")
    assert "and 350 more." in card and len(card) < 2500
    assert "license" not in card
    origin = {
        "name": "resnet18.a1_in1k",
        "source": "timm/resnet18.a1_in1k",
        "license": "apache-2.0",
        "sha256": "a" * 64,
    }
    tuned = model_card("m", "0.0.1", "onnx", meta | {"initial_weights": origin}, verdict)
    assert "started from `resnet18.a1_in1k` (timm/resnet18.a1_in1k), license: **apache-2.0**, SHA-256 `aaaa" in tuned


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
