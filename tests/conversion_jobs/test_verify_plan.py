"""Verifying and packaging plans, against a double of trtexec: no TensorRT can be had here, no plan below ever ran."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conversion_jobs import build_plan, package_model, publish_model, verify_plan
from conversion_jobs.tensorrt.trtexec import read_output
from conversion_jobs.tensorrt.trtexec_log import failure
from conversion_jobs.tensorrt.version import TensorRTVersion, find_version
from conversion_jobs.triton.model_config import parse
from jobkit.errors import ConfigurationError, DataValidationError
from tests.conversion_jobs.conftest import Trained
from tests.conversion_jobs.test_build_plan import build, calls
from tests.support.trtexec_double import install


def verify(trained: Trained, folder: Path, result: build_plan.Result, **options: Any) -> verify_plan.Result:
    arguments = verify_plan.Arguments(
        experiment=trained.experiment, record=result.record, snapshot_id=trained.snapshot_id,
        trtexec=str(folder / "trtexec"), nvidia_smi=str(folder / "nvidia-smi"), **options,
    )  # fmt: skip
    return verify_plan.run(arguments, trained.context)


@pytest.mark.slow
def test_a_plan_is_compared_at_its_batch_sizes_and_timed_alike_in_every_version(
    verified: Trained, tmp_path: Path
) -> None:
    built = build(verified, tmp_path / "trt", options={"opt_batch": 4})
    found = verify(verified, tmp_path / "trt", built)
    assert all(verdict.passed for verdict in found.verdicts)
    assert found.latency_ms == {"median": 1.995, "p90": 2.391, "p99": 2.48}
    stored = json.loads(verified.bottle.read(found.verification))
    assert (stored["batch_sizes"], stored["pictures"], stored["sha256"]) == ([1, 4, 8], 18, built.sha256)
    running = [call for call in calls(tmp_path / "trt") if any(a.startswith("--loadInputs") for a in call)]
    assert [a for call in running[1:] for a in call if a.startswith("--shapes")].count("--shapes=input:8x3x32x32") == 3


def test_a_plan_that_is_too_slow_is_refused_and_not_packaged(verified: Trained, tmp_path: Path) -> None:
    built = build(verified, tmp_path / "trt")
    with pytest.raises(DataValidationError, match=r"batch 1 takes 2\.48 ms \(p99\), at most 2 ms are allowed"):
        verify(verified, tmp_path / "trt", built, limit_ms=2.0)
    with pytest.raises(DataValidationError, match="failed its verification"):
        package(verified, built)


def package(trained: Trained, built: build_plan.Result, **options: Any) -> package_model.Result:
    return trained.package(target="tensorrt", record=built.record, **options)


def test_a_verified_plan_is_packaged_for_the_gpu_beside_the_graph(verified: Trained, tmp_path: Path) -> None:
    built = build(verified, tmp_path / "trt")
    with pytest.raises(DataValidationError, match="was not verified: run verify_plan"):
        package(verified, built)
    verify(verified, tmp_path / "trt", built)
    verified.package()
    packed = package(verified, built)
    assert packed.archive == "inference_models/digits/inference_model/model_trt.zip"
    names = [key.rpartition("/")[2] for key in verified.bottle.keys(packed.folder)]
    assert names == ["meta.json", "model.onnx", "model.plan", "model_onnx.zip", "model_trt.zip"]
    with zipfile.ZipFile(verified.bottle.local(packed.archive)) as archive:
        assert "model.onnx" not in archive.namelist()
        config = parse(archive.read("config.pbtxt").decode())
        meta = json.loads(archive.read("meta.json"))
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 8)
    assert (meta["tensorrt"], meta["compute_capability"], meta["precision"]) == ("10.13.0.35", "7.5", "fp16")
    assert meta["made_by_test_double"]
    with pytest.raises(ConfigurationError, match="--max_batch_size 16 is above the plan's 8"):
        package(verified, built, max_batch_size=16)
    publishing = publish_model.Arguments(
        model_name="digits", archive=packed.archive, sha256=packed.sha256, experiment=verified.experiment
    )
    with pytest.raises(ConfigurationError, match="made by a test double of trtexec, so it is none"):
        publish_model.run(publishing, verified.context)


def test_a_plan_of_another_graph_or_changed_or_for_another_machine_is_refused(
    verified: Trained, tmp_path: Path
) -> None:
    folder = tmp_path / "trt"
    built = build(verified, folder)
    install(folder, 110100)
    with pytest.raises(ConfigurationError, match=r"the plan is for TensorRT 10\.13\.0\.35, this is 11\.1\.0\.106"):
        verify(verified, folder, built)
    install(folder, 101300, gpu="NVIDIA A10, 8.6, 580.65.06, 23028")
    with pytest.raises(ConfigurationError, match="this is a NVIDIA A10"):
        verify(verified, folder, built)
    install(folder, 101300)
    plan = verified.bottle.read(built.plan)
    verified.bottle.write(built.plan, plan + b" ")
    with pytest.raises(DataValidationError, match="was built: run build_plan again"):
        verify(verified, folder, built)
    verified.bottle.write(built.plan, plan)
    verified.export(opset=18)
    verified.verify()
    with pytest.raises(DataValidationError, match="the plan was built from the graph"):
        verify(verified, folder, built)


def test_a_plan_with_wrong_answers_is_refused_by_picture(verified: Trained, tmp_path: Path) -> None:
    built = build(verified, tmp_path / "trt")
    content = verified.bottle.read(built.plan)
    head, header, graph = content.split(b"\n", 2)
    broken = b"\n".join([head, header, _flip(graph)])
    record = json.loads(verified.bottle.read(built.record))
    verified.bottle.write(built.plan, broken)
    verified.bottle.write(built.record, json.dumps({**record, "sha256": _sha256(broken)}))
    with pytest.raises(DataValidationError, match=r"is not to be served: .*cosine.*worst: drawn/"):
        verify(verified, tmp_path / "trt", built)


def _flip(graph: bytes) -> bytes:
    import onnx

    model = onnx.load_from_string(graph)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.weight")
    values = onnx.numpy_helper.to_array(weight)[::-1]
    weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), weight.name))
    return model.SerializeToString()


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def test_versions_are_read_from_the_banners_of_all_generations() -> None:
    assert find_version("&&&& RUNNING TensorRT.trtexec [TensorRT v8601] # x") == TensorRTVersion(8, 6, 1)
    assert find_version("&&&& RUNNING TensorRT.trtexec [TensorRT v101300] [b35] # x") == TensorRTVersion(10, 13, 0, 35)
    assert find_version("&&&& RUNNING TensorRT.trtexec [TensorRT v110100] [b106] #") == TensorRTVersion(11, 1, 0, 106)
    assert find_version("command not found") is None
    assert not TensorRTVersion(11, 1, 0, 106).loads_plans_of(TensorRTVersion(11, 1, 0, 107))
    assert not TensorRTVersion(8, 6, 1).loads_plans_of(TensorRTVersion(8, 6, 0))


def test_a_pass_without_a_loaded_plan_is_a_failure() -> None:
    text = "[E] Engine deserialization failed\n&&&& PASSED TensorRT.trtexec [TensorRT v101300] [b35] # trtexec"
    assert failure(text, 0) is None
    found = failure(text, 0, loads=True)
    assert found is not None
    assert "could not be read" in found.cause
    wrong = "[E] IRuntime::deserializeCudaEngine: The engine plan file is generated on an incompatible device, "
    found = failure(wrong + "expecting compute 7.5 got compute 8.6, please rebuild.", 1, loads=True)
    assert found is not None
    assert "it expects compute 7.5, this one is 8.6" in found.cause


def test_outputs_with_nan_and_infinity_are_read(tmp_path: Path) -> None:
    path = tmp_path / "outputs.json"
    path.write_text('[{ "name" : "logits" , "dimensions" : "1x4" , "values" : [ nan, -inf, inf, 1e-3 ] }]')
    np.testing.assert_array_equal(read_output(path, "logits"), np.array([[np.nan, -np.inf, np.inf, 1e-3]], np.float32))
    with pytest.raises(DataValidationError, match="has no output 'scores'"):
        read_output(path, "scores")


@pytest.mark.slow
def test_a_version_compatible_plan_is_verified_where_it_will_be_served(verified: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "trt"
    built = build(verified, folder, options={"version_compatible": True, "serving": "11.1.0.106"})
    install(folder, 110100)
    found = verify(verified, folder, built)
    assert [verdict.name for verdict in found.verdicts][-2:] == ["reference_outputs", "latency"]
    with zipfile.ZipFile(verified.bottle.local(package(verified, built).archive)) as archive:
        assert json.loads(archive.read("meta.json"))["version_compatible"]
    install(folder, 110100, differs_inside=True)
    with pytest.raises(DataValidationError, match="is not to be served: trtexec's own comparison"):
        verify(verified, folder, built)
    install(folder, 8601)
    with pytest.raises(ConfigurationError, match=r"the plan is for TensorRT 10\.13\.0\.35, this is 8\.6\.1"):
        verify(verified, folder, built)


def test_a_plan_that_brings_a_program_along_is_loaded_only_where_that_is_said(
    verified: Trained, tmp_path: Path
) -> None:
    built = build(verified, tmp_path / "trt", options={"version_compatible": True})
    record = json.loads(verified.bottle.read(built.record))
    verified.bottle.write(built.record, json.dumps({**record, "version_compatible": False}))
    with pytest.raises(ConfigurationError, match="it brings a program along, which has to be allowed"):
        verify(verified, tmp_path / "trt", built)
