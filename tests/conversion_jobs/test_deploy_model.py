"""Deployment: what serves in the end is what was verified, or what served before; nothing is left beside it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest

from conversion_jobs import deploy_model
from conversion_jobs.publishing.package_archive import write_archive
from conversion_jobs.publishing.signature import KeySigner, sign_archive
from conversion_jobs.triton.served_model import Reference, ServedModel
from jobkit.bottle import FolderBottle
from jobkit.errors import DataValidationError, TransientError
from jobkit.experiment import Experiment
from jobkit.files import sha256_of
from jobkit.model_storage import ModelStorage
from tests.conversion_jobs.conftest import Trained
from tests.conversion_jobs.serving import TOKEN, Serving
from tests.conversion_jobs.test_publish_model import another_model
from tests.support.servers import free_port
from tests.support.signing_keys import Key


def serves(trained: Trained, model: str) -> bool:
    """Whether Triton answers as the experiment's reference says."""
    reference = Reference(trained.bottle.local(Experiment(trained.experiment).reference))
    answered, _ = ServedModel(model).ask(reference.inputs)
    return bool(np.allclose(answered, reference.outputs, atol=1e-3))


def reference_of(trained: Trained, tmp_path: Path) -> Trained:
    """Keep the present reference, for when the experiment has another model."""
    kept = FolderBottle(tmp_path / "kept")
    kept.put(Experiment(trained.experiment).reference, trained.bottle.local(Experiment(trained.experiment).reference))
    return Trained(kept, trained.snapshot_id, trained.experiment, trained.context)


def test_the_first_version_and_the_next_come_into_production_and_a_repetition_changes_nothing(
    verified: Trained, served: Serving, model: str
) -> None:
    published = verified.publish(model)
    first = verified.deploy(published.version, model)
    assert (first.version, first.previous_version) == ("0.0.1", None)
    assert 0 < first.latency_ms < 1000
    assert serves(verified, model)
    another_model(verified, 4)
    verified.publish(model)
    second = verified.deploy("0.0.2", model)
    assert (second.version, second.previous_version) == ("0.0.2", "0.0.1")
    assert serves(verified, model)
    again = verified.deploy("0.0.2", model)
    assert (again.version, again.previous_version) == ("0.0.2", "0.0.1")
    history = served.get(f"/history/{model}").json()
    assert [(row["version"], row["snapshot_id"]) for row in history] == [
        ("0.0.2", verified.snapshot_id),
        ("0.0.1", verified.snapshot_id),
    ]
    ready = served.models_in_triton()
    assert ready[model] == "2"
    assert f"{model}__candidate" not in ready


def test_a_version_whose_answers_are_not_those_that_were_verified_never_serves(
    verified: Trained, served: Serving, model: str, tmp_path: Path
) -> None:
    verified.deploy(verified.publish(model).version, model)
    old = reference_of(verified, tmp_path)
    another_model(verified, 4)
    verified.publish(model)
    verified.bottle.put(
        Experiment(verified.experiment).reference, old.bottle.local(Experiment(old.experiment).reference)
    )
    with pytest.raises(
        DataValidationError, match=rf"{model}__candidate answers otherwise than was verified.*worst: drawn/"
    ):
        verified.deploy("0.0.2", model)
    assert serves(old, model)
    assert served.get(f"/models/{model}/champion").json()["version"] == "0.0.1"
    assert f"{model}__candidate" not in served.models_in_triton()


def test_a_version_that_triton_refuses_never_serves_and_the_error_is_tritons(
    verified: Trained, served: Serving, model: str, tmp_path: Path, signing_key: Key
) -> None:
    verified.deploy(verified.publish(model).version, model)
    files = {"model.onnx": tmp_path / "model.onnx", "config.pbtxt": tmp_path / "config.pbtxt"}
    with zipfile.ZipFile(io.BytesIO(verified.bottle.read(verified.package(model).archive))) as package:
        files["model.onnx"].write_bytes(package.read("model.onnx"))
        text = package.read("config.pbtxt").decode().replace('"logits"', '"scores"').replace("labels.txt", "")
        files["config.pbtxt"].write_text(text)
    write_archive(tmp_path / "unsigned.zip", files)
    key = signing_key.private.read_text()
    sign_archive(tmp_path / "unsigned.zip", tmp_path / "bad.zip", model, KeySigner(key), None)
    ModelStorage().upload(model, tmp_path / "bad.zip", sha256_of(tmp_path / "bad.zip"))
    with pytest.raises(DataValidationError, match=r"output 'scores' is not in the model; it has: .'logits'"):
        verified.deploy("0.0.2", model)
    assert serves(verified, model)
    assert served.get(f"/models/{model}/champion").json()["version"] == "0.0.1"


def test_answers_that_go_wrong_after_the_switch_are_rolled_back(
    verified: Trained, served: Serving, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified.deploy(verified.publish(model).version, model)
    old = reference_of(verified, tmp_path)
    another_model(verified, 4)
    verified.publish(model)
    real = deploy_model.try_out

    def fails_in_production(name: str, *arguments: object) -> object:
        if name == model:
            raise DataValidationError("the answers are not those that were verified")
        return real(name, *arguments)

    monkeypatch.setattr(deploy_model, "try_out", fails_in_production)
    with pytest.raises(DataValidationError, match=r"not those that were verified; version 0\.0\.1 serves again"):
        verified.deploy("0.0.2", model)
    assert serves(old, model)
    assert [row["action"] for row in served.get(f"/history/{model}").json()] == ["rollback", "promote", "promote"]


def test_a_first_version_that_goes_wrong_after_the_switch_is_taken_out(
    verified: Trained, served: Serving, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = verified.publish(model)
    real = deploy_model.try_out
    monkeypatch.setattr(
        deploy_model, "try_out", lambda name, *rest: real(name + ("" if "__" in name else "__candidate"), *rest)
    )
    with pytest.raises(DataValidationError, match="was taken out of production: there was no version before"):
        verified.deploy(published.version, model)
    assert model not in served.models_in_triton()


def test_beside_a_pinned_version_another_is_published_and_not_deployed(
    verified: Trained, served: Serving, model: str, tmp_path: Path
) -> None:
    verified.deploy(verified.publish(model).version, model)
    old = reference_of(verified, tmp_path)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    httpx.post(f"{served.url}/models/{model}/versions/0.0.1/pin", headers=headers, timeout=60).raise_for_status()
    assert verified.deploy("0.0.1", model).version == "0.0.1", "the pinned one itself"
    another_model(verified, 4)
    result = verified.deploy(verified.publish(model).version, model)
    assert result.version is None
    assert result.stop_here is not None and result.stop_here.outcome == "pinned"
    assert "pinned to version 0.0.1; 0.0.2 is published" in result.stop_here.reason
    assert serves(old, model)


def test_a_version_that_is_too_slow_never_serves(verified: Trained, served: Serving, model: str) -> None:
    published = verified.publish(model)
    with pytest.raises(
        DataValidationError, match=r"__candidate takes .* ms for a picture \(median\); 0\.0001 ms are allowed"
    ):
        verified.deploy(published.version, model, max_latency_ms=0.0001)
    assert served.get(f"/models/{model}/champion").status_code == 404


def test_unknown_versions_and_references_are_refused_and_a_triton_that_is_away_is_waited_for(
    verified: Trained, served: Serving, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = verified.publish(model)
    with pytest.raises(DataValidationError, match=r"404.*9\.9\.9"):
        verified.deploy("9.9.9", model)
    monkeypatch.setenv("NIGHTSHIFT_TRITON_URL", f"127.0.0.1:{free_port()}")
    with pytest.raises(TransientError, match="did not answer"):
        verified.deploy(published.version, model)
    verified.bottle.write(Experiment(verified.experiment).reference, b"not an npz")
    with pytest.raises(DataValidationError, match="is not what verify_onnx writes"):
        verified.deploy(published.version, model)


def test_the_right_answers_of_another_version_are_not_taken(verified: Trained, served: Serving, model: str) -> None:
    verified.deploy(verified.publish(model).version, model)
    reference = Reference(verified.bottle.local(Experiment(verified.experiment).reference))
    assert ServedModel(model).check(reference, "onnx", 1)
    with pytest.raises(DataValidationError, match=r"version 2 of \w+ should serve, but \[1\] answered"):
        ServedModel(model).check(reference, "onnx", 2)


def test_clients_see_the_labels_that_were_packaged(verified: Trained, served: Serving, model: str) -> None:
    verified.deploy(verified.publish(model).version, model)
    body = {
        "inputs": [{"name": "input", "shape": [1, 3, 32, 32], "datatype": "FP32", "data": [0.0] * 3 * 32 * 32}],
        "outputs": [{"name": "logits", "parameters": {"classification": 1, "binary_data": False}}],
    }
    answer = httpx.post(f"http://{served.triton.http}/v2/models/{model}/infer", json=body, timeout=20).json()
    assert answer["outputs"][0]["data"][0].split(":")[2] in {"circle", "cross", "square"}


def test_the_storage_is_asked_with_the_token(served: Serving) -> None:
    assert httpx.get(f"{served.url}/models", timeout=10).status_code == 401
    assert httpx.get(f"{served.url}/models", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10).is_success
