"""Publishing: the next version, once for the same content, registered in MLflow; storage that is away is waited for."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from jobkit.errors import ConfigurationError, DataValidationError, TransientError
from jobkit.experiment import Experiment
from jobkit.job import Context
from nightshift_common.task_instance import TaskInstanceKey
from tests.conversion_jobs.conftest import Trained
from tests.conversion_jobs.serving import Serving
from tests.support.servers import free_port
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
    expected = {"config.pbtxt", "labels.txt", "meta.json", "model.json", "model.onnx", "sbom.cdx.json"}
    assert set(record["files"]) == expected


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
