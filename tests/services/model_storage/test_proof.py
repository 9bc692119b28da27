"""A promotion by proof: another interface, other answers, NaN and slow ones are refused before anything is switched."""

import io
from pathlib import Path

import numpy as np
import pytest

from nightshift_common.verified_examples import (
    MAX_BYTES,
    VERIFIED_FILE,
    VerifiedExamples,
    differences,
    read_examples,
    write_examples,
)
from tests.services.model_storage.support import Storage, model_zip, running_triton, serving, settings_for, zip_of
from tests.services.model_storage.test_old_clients import PYTHON_MODEL
from tests.support.tiny_onnx import scaling_config, scaling_model

INPUTS = np.array([[1, 2, 3, 4], [0.5, 0, -1, 8]], np.float32)


def examples(scale: float, folder: Path) -> bytes:
    """Return the verified examples of a model that multiplies by `scale`."""
    path = folder / "verified.npz"
    write_examples(path, VerifiedExamples({"input": INPUTS}, {"output": INPUTS * np.float32(scale)}, "embedding"))
    return path.read_bytes()


@pytest.fixture
def named(storage: Storage, model: str, tmp_path: Path) -> str:
    """A model whose version 0.0.1, times 2, was promoted by proof."""
    reply = storage.upload(model, model_zip(model, 2.0, **{VERIFIED_FILE: examples(2.0, tmp_path)}))
    assert reply.status_code == 200, reply.text
    proof = storage.promote(model, "0.0.1").json()["proof"]
    assert (proof["examples"], proof["problems"], proof["notes"]) == (2, [], [])
    assert proof["latency_ms"] > 0
    return model


def refused(storage: Storage, model: str, version: str, **change: object) -> str:
    """Check that a promotion is a 409 which changes nothing; return why."""
    before = (storage.repository / model / "config.pbtxt").read_bytes()
    reply = storage.client.post(f"/models/{model}/versions/{version}/promote", json=change)
    assert reply.status_code == 409, reply.text
    assert storage.client.get(f"/models/{model}/champion").json()["version"] == "0.0.1"
    assert storage.scale_served(model) == 2.0
    assert (storage.repository / model / "config.pbtxt").read_bytes() == before
    assert not (storage.repository / f"{model}__proof").exists()
    assert f"{model}__proof" not in storage.service.fleet.served().models()
    return str(reply.json()["detail"])


def test_other_input_names_are_a_409_unless_forced(storage: Storage, named: str) -> None:
    files = {
        "model.onnx": scaling_model(3.0).replace(b"input", b"image"),
        "config.pbtxt": scaling_config(named).replace('"input"', '"image"'),
    }
    storage.upload(named, zip_of(files))
    why = refused(storage, named, "0.0.2")
    assert "the input 'input' is gone" in why
    pinned = storage.client.post(f"/models/{named}/versions/0.0.2/pin", json={})
    assert pinned.status_code == 409
    query = {"model_name": named, "semantic_version": "0.0.2"}
    assert storage.client.post("/set_semantic_version/", params=query).status_code == 409
    forced = storage.client.post(f"/models/{named}/versions/0.0.2/promote", json={"force": True}).json()
    assert (forced["version"], len(forced["proof"]["problems"])) == ("0.0.2", 2)
    assert storage.client.post(f"/models/{named}/rollback").json()["version"] == "0.0.1", "a way back needs no proof"


def test_answers_that_are_not_finite_are_refused(storage: Storage, named: str, tmp_path: Path) -> None:
    storage.upload(named, model_zip(named, float("nan"), **{VERIFIED_FILE: examples(3.0, tmp_path)}))
    assert "8 of 8 numbers that are not finite" in refused(storage, named, "0.0.2")


def test_answers_beyond_the_tolerance_are_refused(storage: Storage, named: str, tmp_path: Path) -> None:
    storage.upload(named, model_zip(named, 3.0, **{VERIFIED_FILE: examples(3.1, tmp_path)}))
    assert "differs from the verified one by up to 0.8" in refused(storage, named, "0.0.2")
    storage.upload(named, model_zip(named, 3.0, **{VERIFIED_FILE: examples(3.0001, tmp_path)}))
    assert storage.promote(named, "0.0.3").json()["proof"]["examples"] == 2


def test_examples_that_cannot_be_read_are_refused(storage: Storage, named: str) -> None:
    storage.upload(named, model_zip(named, 3.0, **{VERIFIED_FILE: b"no arrays"}))
    assert "cannot be read" in refused(storage, named, "0.0.2")


def test_a_version_that_answers_late_is_refused(database_url: str, model: str, tmp_path: Path) -> None:
    backend = scaling_config(model).replace('platform: "onnxruntime_onnx"', 'backend: "python"')
    slow = PYTHON_MODEL.replace("        answers = []", "        import time; time.sleep(0.5); answers = []")
    with (
        running_triton(tmp_path) as triton,
        serving(triton, settings_for(triton, database_url, python_models="on")) as storage,
    ):
        storage.promote(model, storage.published(model, 2.0))
        archive = {"model.py": slow, "config.pbtxt": backend, VERIFIED_FILE: examples(6.0, tmp_path)}
        assert storage.upload(model, zip_of(archive)).status_code == 200
        assert "100 ms are allowed" in refused(storage, model, "0.0.2", max_latency_ms=100)
        assert storage.promote(model, "0.0.2").json()["proof"]["latency_ms"] >= 500
        assert storage.scale_served(model) == 6.0


def test_a_version_without_examples_is_promoted_and_the_reply_says_that_nothing_was_proved(
    storage: Storage, named: str
) -> None:
    proof = storage.promote(named, storage.published(named, 3.0)).json()["proof"]
    assert (proof["examples"], proof["problems"]) == (0, [])
    assert "nothing was proved" in proof["notes"][0]


def test_outputs_of_another_size_are_told_and_not_refused(storage: Storage, named: str) -> None:
    config = scaling_config(named).replace(
        '"output", data_type: TYPE_FP32, dims: [4]', '"output", data_type: TYPE_FP32, dims: [-1]'
    )
    storage.upload(named, model_zip(named, 3.0, **{"config.pbtxt": config}))
    proof = storage.promote(named, "0.0.2").json()["proof"]
    assert "the output 'output' is [-1, -1], it was [-1, 4]" in proof["notes"]


def test_a_version_without_a_configuration_inherits_the_tuned_one(storage: Storage, model: str) -> None:
    tuned = scaling_config(model, max_batch_size=64).replace("count: 1", "count: 2")
    storage.upload(model, model_zip(model, 2.0, **{"config.pbtxt": tuned}))
    storage.promote(model, "0.0.1")
    reply = storage.upload(model, zip_of({"model.onnx": scaling_model(3.0)})).json()
    assert reply["inherited"]["version"] == "0.0.1"
    assert reply["inherited"]["settings"]["max_batch_size"] == "64"
    assert "count: 2" in reply["inherited"]["settings"]["instance_group"]
    assert "dynamic_batching" in reply["inherited"]["settings"]
    assert storage.promote(model, "0.0.2").status_code == 200
    config = storage.service.fleet.servers[0].config(model)
    assert (config.max_batch_size, config.instance_group[0].count, config.HasField("dynamic_batching")) == (64, 2, True)
    assert storage.scale_served(model) == 3.0
    other = storage.upload(model, zip_of({"model.onnx": scaling_model(3.0, width=5)})).json()
    assert other == {"version": "0.0.3"}, "another interface takes nothing over"


def test_examples_come_back_as_they_were_and_the_same_ones_are_the_same_bytes(tmp_path: Path) -> None:
    content = examples(2.0, tmp_path)
    assert content == examples(2.0, tmp_path)
    found = read_examples(content)
    assert (found.count, found.judged_as) == (2, "embedding")
    assert np.array_equal(found.outputs["output"], INPUTS * 2)


def bomb() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{"input/x": np.zeros(MAX_BYTES + 1, np.uint8)})
    return buffer.getvalue()


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{"input/x": np.array([{}], object), "output/y": np.ones(1), "judged_as": np.array("x")})
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"PK", bomb(), pickled()], ids=["empty", "torn", "a bomb", "pickled objects"])
def test_a_file_that_is_not_ours_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"not what|Object arrays|at most"):
        read_examples(content)


def test_of_a_plan_the_direction_counts() -> None:
    wanted = VerifiedExamples({"input": INPUTS}, {"output": INPUTS}, "logits")
    assert differences(wanted, {"output": INPUTS * 1.1}, "tensorrt") == []
    assert "cosine" in differences(wanted, {"output": INPUTS[:, ::-1].copy()}, "tensorrt")[0]
    assert "up to" in differences(wanted, {"output": INPUTS * 1.1}, "onnx")[0]
    assert "shape" in differences(wanted, {}, "onnx")[0]
