"""Building plans, against a double of trtexec: no TensorRT can be had here, and nothing below is a plan that ran.

AutoCast, which makes half precision graphs for TensorRT 11, is the real one.
"""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from conversion_jobs import build_plan, verify_plan
from conversion_jobs.tensorrt import int8
from conversion_jobs.tensorrt.int8 import calibration_inputs
from conversion_jobs.tensorrt.plan import Plan
from conversion_jobs.triton.model_config import parse
from jobkit.errors import ConfigurationError, DataValidationError, JobError, TransientError
from jobkit.experiment import Experiment, read_spec
from jobkit.snapshot import read_snapshot
from tests.conversion_jobs.conftest import Trained
from tests.support.trained import make_model, write_experiment
from tests.support.trtexec_double import FIRST_LINE, install

SERVING = {8503: "8.5.3", 8601: "8.6.1", 101300: "10.13.0.35", 110100: "11.1.0.106"}


def build(trained: Trained, folder: Path, version: int = 101300, **settings: Any) -> build_plan.Result:
    options = settings.pop("options", {})
    trtexec, nvidia_smi = install(folder, version, **settings)
    arguments = build_plan.Arguments(
        experiment=trained.experiment, serving_tensorrt=options.pop("serving", SERVING[version]), trtexec=str(trtexec),
        nvidia_smi=str(nvidia_smi), **options,
    )  # fmt: skip
    return build_plan.run(arguments, trained.context)


def calls(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def record(trained: Trained, result: build_plan.Result) -> Plan:
    return Plan.model_validate_json(trained.bottle.read(result.record))


@pytest.mark.parametrize(
    ("version", "has", "lacks"),
    [
        (8601, {"--fp16", "--memPoolSize=workspace:4096", "--skipInference"}, {"--workspace=4096"}),
        (101300, {"--fp16", "--memPoolSize=workspace:4096", "--skipInference"}, {"--workspace=4096"}),
        (110100, {"--memPoolSize=workspace:4096", "--skipInference"}, {"--fp16", "--workspace=4096"}),
    ],
)
def test_each_version_gets_the_options_that_it_knows(
    verified: Trained, tmp_path: Path, version: int, has: set[str], lacks: set[str]
) -> None:
    result = build(verified, tmp_path / "trt", version)
    (building,) = [call for call in calls(tmp_path / "trt") if any(a.startswith("--onnx") for a in call)]
    assert has <= set(building)
    assert not lacks & set(building)
    assert "--minShapes=input:1x3x32x32" in building
    assert "--maxShapes=input:8x3x32x32" in building
    found = record(verified, result)
    assert (found.precision, found.tensorrt, found.gpu) == ("fp16", SERVING[version], "Tesla T4")
    assert found.skipped_tactics == 2, "out of memory in a build that passed is a tactic left out, once each"
    assert found.made_by_test_double
    log = verified.bottle.read(f"{verified.experiment}/tensorrt/sm75-{SERVING[version]}/build.log").decode()
    assert FIRST_LINE in log
    running = calls(tmp_path / "trt")[-1]
    assert ("--noCudaGraph" in running) == (version >= 110000), "the versions' defaults differ: they are set"


def test_tensorrt_11_gets_a_graph_that_is_in_half_precision_already(verified: Trained, tmp_path: Path) -> None:
    result = build(verified, tmp_path / "trt", 110100)
    content = verified.bottle.read(result.plan)
    graph = onnx.load_from_string(content.split(b"\n", 2)[2])
    weights = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.graph.initializer}
    assert "FLOAT16" in weights
    assert graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert graph.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert {entry.key for entry in graph.metadata_props} >= {"labels", "snapshot_id"}


class Loud(nn.Module):
    """A model whose values leave the range of half precision in the middle and come back."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.backbone, self.fc, self.factor = model.backbone, model.fc, factor

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.backbone(pictures) * self.factor) / self.factor)


@pytest.fixture
def loud(trained: Trained) -> Trained:
    """An experiment that FP16 breaks."""
    spec = write_experiment(trained.bottle, trained.experiment, trained.snapshot_id)
    model = Loud(make_model(spec, 3), 1e6)
    write_experiment(trained.bottle, trained.experiment, trained.snapshot_id, model=model)
    trained.bottle.path(Experiment(trained.experiment).best_checkpoint).unlink()  # it is exported from its TorchScript
    trained.export()
    trained.verify()
    return trained


def test_a_model_that_overflows_half_precision_keeps_the_named_layers_in_fp32(loud: Trained, tmp_path: Path) -> None:
    found = record(loud, build(loud, tmp_path / "trt"))
    assert found.precision == "mixed"
    first, second = found.attempts
    assert (first.precision, first.accepted) == ("fp16", False)
    assert "NaN or infinity" in first.reason
    assert "/Mul" in second.fp32_layers
    assert second.accepted
    building = [call for call in calls(tmp_path / "trt") if any(a.startswith("--onnx") for a in call)]
    assert any(a.startswith("--layerPrecisions=") and "/Mul:fp32" in a for a in building[1])
    assert "--precisionConstraints=obey" in building[1]


def test_autocast_keeps_what_would_overflow_in_fp32(loud: Trained, tmp_path: Path) -> None:
    found = record(loud, build(loud, tmp_path / "trt", 110100))
    assert found.attempts[-1].accepted
    assert found.precision in ("fp16", "mixed"), "AutoCast looks at the values of real pictures by itself"


def test_fp32_is_what_is_left_where_no_layer_is_to_blame(loud: Trained, tmp_path: Path) -> None:
    key = Experiment(loud.experiment).verification
    found = json.loads(loud.bottle.read(key))
    loud.bottle.write(key, json.dumps({**found, "fp16_risks": []}))
    plan = record(loud, build(loud, tmp_path / "trt"))
    assert [(attempt.precision, attempt.accepted) for attempt in plan.attempts] == [("fp16", False), ("fp32", True)]


@pytest.mark.parametrize("version", [8601, 101300, 110100])
@pytest.mark.parametrize(
    ("fault", "error"),
    [("out_of_memory", TransientError), ("no_kernel", DataValidationError), ("disk_full", TransientError)],
)
def test_a_build_that_fails_once_gives_no_plan_of_lower_precision(
    verified: Trained, tmp_path: Path, version: int, fault: str, error: type[JobError]
) -> None:
    """A GPU that is full for the FP16 build and free for the FP32 build: no slow plan is shipped in silence."""
    with pytest.raises(error):
        build(verified, tmp_path / "trt", version, fault=fault, once=True)
    assert len([call for call in calls(tmp_path / "trt") if any(a.startswith("--onnx") for a in call)]) == 1
    assert build(verified, tmp_path / "trt", version, fault=fault, once=True).precision == "fp16", "tried again"


def test_a_tensorrt_that_is_too_old_is_refused_by_name(verified: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"TensorRT 8\.5\.3 is too old"):
        build(verified, tmp_path / "trt", 8503)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"fault": "no_gpu"}, ConfigurationError, "no usable GPU.*queue of its GPU"),
        ({"fault": "out_of_memory"}, TransientError, "the GPU's memory ran out.*nothing else uses"),
        ({"fault": "unknown_operator"}, DataValidationError, "no implementation of the operator FancyNorm"),
        ({"fault": "disk_full"}, TransientError, "the disk is full"),
        ({"fault": "killed"}, TransientError, r"ended by signal 9 \(the kernel's, for memory\)"),
        ({"fault": "silent"}, DataValidationError, "passed, but wrote no plan"),
        ({"fault": "hangs", "options": {"timeout": 2.0}}, TransientError, "did not end in 2 s and was killed"),
        ({"gpu": "NVIDIA A10, 8.6, 580.65.06, 23028"}, ConfigurationError, r"NVIDIA A10 \(compute 8.6\).*compute 7.5"),
        ({"gpu": None}, ConfigurationError, "finds no GPU"),
        ({"options": {"serving": "10.13.0.36"}}, ConfigurationError, "TensorRT 10.13.0.35, the serving Triton has 10."),
        ({"options": {"opt_batch": 9}}, ConfigurationError, "1, 9, 8 are not in order"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_build_that_fails_says_the_cause_and_the_next_step_and_publishes_nothing(
    verified: Trained, tmp_path: Path, settings: dict[str, Any], error: type[JobError], says: str
) -> None:
    with pytest.raises(error, match=f"(?s){says}"):
        build(verified, tmp_path / "trt", **settings)
    kept = [key.rpartition("/")[2] for key in verified.bottle.keys(f"{verified.experiment}/tensorrt")]
    assert kept in ([], ["build.log"])


def test_a_lost_tactic_memory_is_tried_again_and_then_builds(verified: Trained, tmp_path: Path) -> None:
    with pytest.raises(TransientError):
        build(verified, tmp_path / "trt", fault="out_of_memory", once=True)
    assert build(verified, tmp_path / "trt", fault="out_of_memory", once=True).precision == "fp16"


def test_the_same_plan_is_not_built_twice_and_the_timings_are_kept(verified: Trained, tmp_path: Path) -> None:
    first = build(verified, tmp_path / "trt")
    assert list(verified.bottle.keys("timing_caches")) == ["timing_caches/Tesla_T4-10.13.0.35.cache"]
    count = len(calls(tmp_path / "trt"))
    assert build(verified, tmp_path / "trt") == first
    assert [call for call in calls(tmp_path / "trt")[count:] if call != ["--help"]] == []
    verified.bottle.write(first.plan, b"damaged")
    assert build(verified, tmp_path / "trt") == first
    assert verified.bottle.read(first.plan) != b"damaged"


def test_a_graph_that_was_not_verified_is_not_built(trained: Trained, tmp_path: Path) -> None:
    trained.export()
    with pytest.raises(DataValidationError, match="was not verified: run verify_onnx"):
        build(trained, tmp_path / "trt")


def test_a_machine_without_trtexec_is_no_builder(verified: Trained) -> None:
    arguments = build_plan.Arguments(experiment=verified.experiment, serving_tensorrt="11.1.0.106")
    with pytest.raises(ConfigurationError, match=r"trtexec cannot be run.*use the TensorRT image"):
        build_plan.run(arguments, verified.context)


def test_the_double_says_what_it_is(tmp_path: Path) -> None:
    trtexec, _ = install(tmp_path, 110100)
    done = subprocess.run([trtexec, "--fp16"], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[0] == FIRST_LINE
    assert (done.returncode, "FAILED" in done.stdout) == (1, False), "recorded: 11.1 ends without a FAILED line"


PROFILES = {"opt_batch": 2, "max_batch": 8, "more_profiles": "8-16-16", "size_profile": "32x32,32x32,64x96"}


@pytest.fixture
def free_sizes(trained: Trained) -> Trained:
    trained.export(dynamic_size=True)
    trained.verify()
    return trained


def test_several_profiles_for_free_sizes_are_built_run_verified_and_served(free_sizes: Trained, tmp_path: Path) -> None:
    result = build(free_sizes, tmp_path / "trt", options=dict(PROFILES))
    (building,) = [call for call in calls(tmp_path / "trt") if any(a.startswith("--onnx") for a in call)]
    assert [argument for argument in building if argument.startswith("--profile") or "Shapes=" in argument] == [
        "--profile=0", "--minShapes=input:1x3x32x32", "--optShapes=input:2x3x32x32", "--maxShapes=input:8x3x64x96",
        "--profile=1", "--minShapes=input:8x3x32x32", "--optShapes=input:16x3x32x32", "--maxShapes=input:16x3x64x96",
    ]  # fmt: skip
    found = record(free_sizes, result)
    assert (found.profiles, found.sizes) == ([(1, 2, 8), (8, 16, 16)], ((32, 32), (32, 32), (64, 96)))
    verify_plan.run(
        verify_plan.Arguments(
            experiment=free_sizes.experiment, record=result.record, snapshot_id=free_sizes.snapshot_id,
            trtexec=str(tmp_path / "trt" / "trtexec"), nvidia_smi=str(tmp_path / "trt" / "nvidia-smi"),
        ),
        free_sizes.context,
    )  # fmt: skip
    runs = {
        (option, argument)
        for call in calls(tmp_path / "trt") for option in call for argument in call
        if option.startswith("--useProfile") and argument.startswith("--shapes")
    }  # fmt: skip
    assert {("--useProfile=0", "--shapes=input:8x3x32x32"), ("--useProfile=1", "--shapes=input:16x3x32x32")} <= runs
    package = free_sizes.package(target="tensorrt", record=result.record, max_batch_size=16)
    with zipfile.ZipFile(free_sizes.bottle.local(package.archive)) as archive:
        config = parse(archive.read("config.pbtxt").decode())
    assert (list(config.instance_group[0].profile), list(config.input[0].dims)) == (["0", "1"], [3, -1, -1])
    assert build(free_sizes, tmp_path / "trt", options=dict(PROFILES)) == result, "nothing is built again"


@pytest.mark.parametrize(
    ("version", "changes", "says"),
    [
        (8601, {}, "TensorRT 8.6.1 builds one optimization profile, from 10.0 on several"),
        (101300, {"size_profile": ""}, r"has 2 free sizes beside its batch, and --size_profile has 0"),
        (101300, {"size_profile": "64x64,64x64,96x96"}, "leaves out the verified size 32x32"),
        (101300, {"size_profile": "64x64,32x32,96x96"}, "is not in order"),
        (101300, {"more_profiles": "9-8-16"}, "9, 8, 16 are not in order"),
    ],
)
def test_profiles_that_cannot_be_built_are_refused(
    free_sizes: Trained, tmp_path: Path, version: int, changes: dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        build(free_sizes, tmp_path / "trt", version, options={**PROFILES, **changes})


def verdict_names(found: Plan) -> list[str]:
    return [verdict.name for verdict in found.attempts[-1].verdicts]


def test_where_trtexec_compares_itself_its_opinion_counts_and_elsewhere_it_is_not_asked(
    verified: Trained, tmp_path: Path
) -> None:
    found = record(verified, build(verified, tmp_path / "11", 110100))
    assert verdict_names(found) == ["finite", "cosine", "top1_agreement", "reference_outputs"]
    assert 0 <= found.attempts[-1].verdicts[-1].value < 0.003
    (asked,) = [call for call in calls(tmp_path / "11") if any(a.startswith("--loadRefOutputs=") for a in call)]
    assert {"--accuracyAlgorithm=cos", "--accuracyThreshold=0.003"} <= set(asked)
    assert "reference_outputs" not in verdict_names(record(verified, build(verified, tmp_path / "10")))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"differs_inside": True}, r"its loss .1 - cosine. is \d\.\d+"),
        ({"compares": "scores"}, r"it compared no output 'logits'"),  # trtexec itself passes here
    ],
)
def test_a_plan_that_trtexec_finds_wrong_or_did_not_compare_is_not_accurate_in_any_precision(
    verified: Trained, tmp_path: Path, wrong: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataValidationError, match=rf"gives an accurate plan: fp16: .*{says}.*fp32: .*{says}"):
        build(verified, tmp_path / "trt", 110100, **wrong)


def test_a_version_compatible_plan_is_for_later_versions_too_and_never_for_earlier_ones(
    verified: Trained, tmp_path: Path
) -> None:
    compatible = {"version_compatible": True, "serving": "11.1.0.106"}
    found = record(verified, build(verified, tmp_path / "trt", options=compatible))
    assert found.version_compatible
    for call in calls(tmp_path / "trt")[1:]:
        assert "--versionCompatible" in call, "to build it and to load it"
    for version, serving in ((110100, "10.13.0.35"), (8601, "11.1.0.106")):
        with pytest.raises(ConfigurationError, match="version-compatible plans load in the same or a later version"):
            build(verified, tmp_path / "trt", version, options=compatible | {"serving": serving})
    with pytest.raises(ConfigurationError, match="it loads plans of its own build only"):
        build(verified, tmp_path / "trt", options={"serving": "11.1.0.106"})


def test_a_plan_without_weights_lies_beside_the_one_that_is_served(verified: Trained, tmp_path: Path) -> None:
    stripped = {"strip_weights": True}
    built = build(verified, tmp_path / "trt", options=stripped)
    found = record(verified, built)
    assert verified.bottle.exists(built.plan.replace("model.plan", "stripped.plan"))
    assert found.stripped_sha256 not in (None, found.sha256)
    building = [call for call in calls(tmp_path / "trt") if any(a.startswith("--onnx") for a in call)]
    assert ["--stripWeights" in call for call in building] == [False, True]
    with pytest.raises(ConfigurationError, match=r"8\.6\.1 has no --stripWeights: 10\.0 was the first with it"):
        build(verified, tmp_path / "trt", 8601, options=stripped)


def make_decided(trained: Trained) -> None:
    """Let the model prefer a class clearly: one without training is at a loss between them, which INT8 then decides."""
    spec = read_spec(trained.bottle, Experiment(trained.experiment))
    model = make_model(spec, seed=3)
    with torch.no_grad():
        model.fc.bias += torch.tensor([10.0, 0.0, -10.0])
    write_experiment(trained.bottle, trained.experiment, trained.snapshot_id, model=model)
    trained.export()
    trained.verify()


def test_int8_is_calibrated_without_golden_pictures_and_judged_as_every_precision(
    verified: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_decided(verified)
    read: list[str] = []
    prepare = int8.prepare
    monkeypatch.setattr(int8, "prepare", lambda path, how: (read.append(path.stem), prepare(path, how))[1])
    golden = {s.sha256 for s in read_snapshot(verified.bottle, "digits", verified.snapshot_id).split("golden")}
    options = {"precision": "int8", "snapshot_id": verified.snapshot_id}
    for version in (101300, 110100):
        folder = tmp_path / str(version)
        built = build(verified, folder, version, options=dict(options))
        assert len(set(read)) == 12
        assert not set(read) & golden
        found = record(verified, built)
        assert (found.precision, found.calibration_pictures) == ("int8", 12)
        assert found.calibration_snapshot_id == verified.snapshot_id
        (cosine,) = [verdict for verdict in found.attempts[0].verdicts if verdict.name == "cosine"]
        assert 0.997 <= cosine.value < 1 - 1e-9, "what ran was the quantized graph"
        (building,) = [call for call in calls(folder) if any(a.startswith("--onnx") for a in call)]
        assert ("--int8" in building) == (version < 110000)
        graph = onnx.load_from_string(verified.bottle.read(built.plan).split(b"\n", 2)[2]).graph
        zeros = {i for node in graph.node if node.op_type == "QuantizeLinear" for i in node.input[2:]}
        values = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer if i.name in zeros}
        assert {value.dtype.name for value in values.values()} == {"int8"}
        assert not any(value.any() for value in values.values()), "symmetric"
        assert any(value.size > 1 for value in values.values()), "weights a channel"
        ends = {end.type.tensor_type.elem_type for end in (*graph.input, *graph.output)}
        assert ends == {onnx.TensorProto.FLOAT}
        weights = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}
        assert ("FLOAT16" in weights) == (version >= 110000), "strongly typed: the rest is half in the graph itself"


def test_int8_that_is_not_accurate_is_not_built_into_what_is_served(
    verified: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibrated with pictures that say nothing of the range of real ones, its answers are off."""
    dark = lambda *arguments: calibration_inputs(*arguments) * 0.01  # noqa: E731
    monkeypatch.setattr(build_plan, "calibration_inputs", dark)
    options = {"precision": "int8", "snapshot_id": verified.snapshot_id}
    found = record(verified, build(verified, tmp_path / "trt", options=options))
    assert [(attempt.precision, attempt.accepted) for attempt in found.attempts] == [("int8", False), ("fp16", True)]
    assert "cosine" in found.attempts[0].reason
    assert (found.precision, found.calibration_pictures) == ("fp16", 0)


def test_int8_without_pictures_or_with_a_tensorrt_that_does_not_read_it_is_refused(
    verified: Trained, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="--snapshot_id says of which snapshot"):
        build(verified, tmp_path / "trt", options={"precision": "int8"})
    with pytest.raises(ConfigurationError, match=r"8\.6\.1 does not read quantized graphs .* int8 takes 10\.0"):
        build(verified, tmp_path / "trt", 8601, options={"precision": "int8", "snapshot_id": verified.snapshot_id})
