"""The earlier scripts' command lines, as their users write them; trtexec is a double, since none can be had here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from conversion_jobs import convert2trt
from conversion_jobs.onnx.export import export_module
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.job import Context
from tests.support.tiny_onnx import scaling_model
from tests.support.trtexec_double import HEADER, install

CONVERTATION = Path(__file__).resolve().parents[2] / "convertation"


def shell(folder: Path, *command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_lines_for_the_encoder_work_in_their_folder(tmp_path: Path, pictures: Path) -> None:
    encoder = timm.create_model("test_vit", num_classes=0, img_size=(64, 64))
    torch.save(encoder.state_dict(), tmp_path / "best.pth")
    weights, graph = ("--weights", tmp_path / "best.pth"), tmp_path / "model.onnx"
    shell(
        CONVERTATION / "vit", sys.executable, "torch2onnx.py", *weights, "--output", graph, "--img-size", "64", "64",
        "--architecture", "test_vit",
    )  # fmt: skip
    said = shell(CONVERTATION / "vit", sys.executable, "test_onnx.py", "--onnx", graph, *weights, "--inputs", pictures)
    assert '"compared": 5' in said


def test_the_lines_for_a_head_work_down_to_the_plan(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).state_dict(), tmp_path / "model_binary.pth")
    np.save(tmp_path / "embeddings.npy", np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32))
    graph, plan = tmp_path / "model.onnx", tmp_path / "model.plan"
    weights = ("--weights", tmp_path / "model_binary.pth", "--hidden-activation", "relu")
    shell(CONVERTATION / "head", sys.executable, "torch2onnx.py", *weights, "--output", graph)
    install(tmp_path / "bin", 101300)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    inputs = ("--inputs", tmp_path / "embeddings.npy")
    shell(CONVERTATION / "head", "sh", "convert2trt.sh", graph, plan, *inputs, PATH=path, PYTHON=sys.executable)
    assert plan.read_bytes().startswith(HEADER)
    assert "&&&& PASSED" in plan.with_suffix(".log").read_text()


def convert(folder: Path, version: int, **options: object) -> convert2trt.Result:
    trtexec, nvidia_smi = install(folder / "bin", version, **(options.pop("double", {})))  # type: ignore[arg-type]
    arguments = convert2trt.Arguments(
        onnx=folder / "model.onnx", plan=folder / "out" / "model.plan", trtexec=str(trtexec),
        nvidia_smi=str(nvidia_smi), **options,
    )  # fmt: skip
    return convert2trt.run(arguments, Context(folder, None))


def test_half_precision_for_tensorrt_11_asks_for_real_inputs(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(scaling_model(2.0))
    with pytest.raises(ConfigurationError, match=r"--precision fp16 with TensorRT 11\.1\.0\.106 needs --inputs"):
        convert(tmp_path, 110100, precision="fp16")
    assert convert(tmp_path, 110100).precision == "fp32"  # nobody asked for another: with a warning
    assert convert(tmp_path, 110100, precision="fp32").verdicts == []
    assert convert(tmp_path, 101300).tensorrt == "10.13.0.35"


class Loud(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.relu(values * 1e6) * 1e-6


def test_a_plan_that_overflows_is_refused_and_mixed_precision_is_not(tmp_path: Path) -> None:
    export_module(Loud().eval(), (4,), tmp_path / "model.onnx", output="logits", opset=17, metadata={})
    np.save(tmp_path / "inputs.npy", np.random.default_rng(0).uniform(1, 3, (4, 4)).astype(np.float32))
    with pytest.raises(DataValidationError, match=r"the plan is not accurate: NaN or infinity.*--precision mixed"):
        convert(tmp_path, 101300, inputs=tmp_path / "inputs.npy")
    assert not (tmp_path / "out" / "model.plan").exists()
    result = convert(tmp_path, 101300, inputs=tmp_path / "inputs.npy", precision="mixed")
    assert all(verdict.passed for verdict in result.verdicts)


def test_a_build_that_fails_leaves_the_plan_of_before(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(scaling_model(2.0))
    before = convert(tmp_path, 101300)
    with pytest.raises(DataValidationError, match="no implementation of the operator FancyNorm"):
        convert(tmp_path, 101300, double={"fault": "unknown_operator"})
    assert convert2trt.sha256_of(tmp_path / "out" / "model.plan") == before.sha256
