"""Packaging: what Triton needs is generated from the graph, checked with its schema, and always the same bytes."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2 as schema

from conversion_jobs.onnx.graph import GraphInterface, TensorInterface, interface, read_graph
from conversion_jobs.onnx.session import OnnxModel
from conversion_jobs.triton.model_config import contradictions, model_config, parse, to_text
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment
from jobkit.provenance import ROOT, provenance
from nightshift_common.verified_examples import VERIFIED_FILE, differences, read_examples
from tests.conversion_jobs.conftest import Trained
from tests.support.trained import LABELS


def test_the_folder_and_the_flat_archive_hold_what_model_storage_expects(verified: Trained) -> None:
    result = verified.package()
    assert result.folder == "inference_models/digits/inference_model"
    assert list(verified.bottle.keys(result.folder)) == [
        f"{result.folder}/{name}" for name in ("meta.json", "model.onnx", "model_onnx.zip")
    ]
    with zipfile.ZipFile(verified.bottle.local(result.archive)) as archive:
        assert archive.namelist() == [
            *("config.pbtxt", "labels.txt", "meta.json", "model.json", "model.onnx", "sbom.cdx.json", VERIFIED_FILE)
        ]
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}, "no times: same content"
        assert archive.read("labels.txt").decode().splitlines() == LABELS
        assert archive.read("model.onnx") == verified.bottle.read(Experiment(verified.experiment).onnx)
        proof = read_examples(archive.read(VERIFIED_FILE))
        answers = OnnxModel(verified.bottle.local(Experiment(verified.experiment).onnx), 1).run_all(
            proof.inputs["input"], 1
        )
        meta = json.loads(archive.read("meta.json"))
        config = parse(archive.read("config.pbtxt").decode())
    assert proof.count == 4
    assert differences(proof, {"logits": answers[0]}, "onnx") == []
    assert meta["inputs"] == [{"name": "input", "dtype": "float32", "shape": [-1, 3, 32, 32]}]
    assert meta["snapshot_id"] == verified.snapshot_id
    assert config.name == "digits"
    assert config.platform == "onnxruntime_onnx"
    assert config.max_batch_size == 8
    assert list(config.input[0].dims) == [3, 32, 32]
    assert config.input[0].data_type == schema.TYPE_FP32
    assert (config.output[0].name, list(config.output[0].dims)) == ("logits", [3])
    assert config.HasField("dynamic_batching")
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 8]


def test_the_same_graph_gives_the_same_archive_and_another_option_another(verified: Trained) -> None:
    first = verified.package()
    assert verified.package().sha256 == first.sha256
    assert verified.package(max_batch_size=4).sha256 != first.sha256


def test_a_graph_that_was_not_verified_as_it_is_now_is_refused(verified: Trained) -> None:
    experiment = Experiment(verified.experiment)
    passed = verified.bottle.read(experiment.verification)
    verified.export(opset=18)
    with pytest.raises(DataValidationError, match="was verified: run verify_onnx again"):
        verified.package()
    verified.export()
    verified.bottle.write(experiment.verification, passed.replace(b'"passed": true', b'"passed": false', 1))
    with pytest.raises(DataValidationError, match="failed its verification"):
        verified.package()
    verified.bottle.delete(experiment.verification)
    with pytest.raises(DataValidationError, match="was not verified"):
        verified.package()
    assert not list(verified.bottle.keys("inference_models"))


def test_a_bad_model_name_is_refused(verified: Trained) -> None:
    with pytest.raises(ValidationError, match="model_name"):
        verified.package("../digits")


def graph_of(*outputs: TensorInterface, batch: int | None = None) -> GraphInterface:
    given = TensorInterface("input", "float32", (batch, 3, None, None))
    return GraphInterface((given,), outputs or (TensorInterface("y", "int64", (batch,)),), 17, {})


def test_a_fixed_batch_is_served_as_built_and_a_free_one_is_left_out_of_the_dims() -> None:
    fixed = model_config(graph_of(batch=2), "m", has_labels=False)
    assert fixed.max_batch_size == 0
    assert (list(fixed.input[0].dims), list(fixed.output[0].dims)) == ([2, 3, -1, -1], [2])
    assert not fixed.HasField("dynamic_batching")
    free = model_config(graph_of(), "m", device="gpu", target="tensorrt", has_labels=False)
    assert (free.max_batch_size, list(free.input[0].dims), list(free.output[0].dims)) == (8, [3, -1, -1], [1])
    assert free.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    assert free.platform == "tensorrt_plan"
    assert not free.model_warmup, "a free picture size has no warm-up of one size"


def test_everything_in_which_a_configuration_contradicts_its_graph_is_listed_at_once(verified: Trained) -> None:
    graph = interface(read_graph(verified.bottle.local(Experiment(verified.experiment).onnx)))
    config = model_config(graph, "digits")
    assert contradictions(config, graph) == []
    config.input[0].dims[0] = 1
    config.output[0].name = "scores"
    config.output.add(name="logits", data_type=schema.TYPE_FP16, dims=[3])
    assert contradictions(config, graph) == [
        "input 'input' has dims [1, 32, 32], in the graph [3, 32, 32]",
        "output 'scores' is not in the graph, which has logits",
        "output 'logits' is TYPE_FP16, in the graph TYPE_FP32",
    ]
    assert contradictions(config, graph_of(TensorInterface("logits", "float32", (2, 3)), batch=2))[0].endswith("be 0")


def test_a_configuration_with_an_unknown_field_is_refused_with_its_line() -> None:
    text = to_text(model_config(graph_of(), "m"))
    with pytest.raises(ConfigurationError, match=r"config.pbtxt:1:1.*no field named .nane"):
        parse(text.replace("name:", "nane:", 1))


def test_the_archive_says_what_the_model_was_made_of(verified: Trained) -> None:
    """By CycloneDX's own schema; the packages against the lock, which this environment was installed from."""
    made = provenance("jobs")
    verified.bottle.write(Experiment(verified.experiment).metrics, json.dumps({"provenance": made}))
    with zipfile.ZipFile(verified.bottle.local(verified.package().archive)) as archive:
        text = archive.read("sbom.cdx.json").decode()
        digest = hashlib.sha256(archive.read("model.onnx")).hexdigest()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    content = json.loads(text)
    assert content["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": digest}]
    packages = content["formulation"][0]["components"]
    found = {re.sub(r"[-_.]+", "-", entry["name"]).lower(): entry["version"] for entry in packages}
    lock = (ROOT / "requirements" / "jobs.txt").read_text()
    pins = re.findall(r"^([a-z0-9-]+)(?:\[.*\])?==([^\s;]+)", lock, re.MULTILINE)
    assert len(pins) > 80
    wrong = {name: version for name, version in pins if found.get(name, "").split("+")[0] != version}
    assert not wrong
