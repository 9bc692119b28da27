"""The scripts in `convertation/` without options: the paths that they read and write are those of before."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import nn

from tests.compatibility.conftest import shell
from tests.support.tiny_onnx import scaling_model
from tests.support.trtexec_double import HEADER, install


def save(module: nn.Module, path: Path) -> nn.Module:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(module.state_dict(), path)
    return module.eval()


def same(module: nn.Module, graph: Path, *shape: int) -> bool:
    values = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    with torch.inference_mode():
        wanted = module(torch.from_numpy(values)).numpy()
    session = onnxruntime.InferenceSession(graph)
    return bool(np.allclose(session.run(None, {session.get_inputs()[0].name: values})[0], wanted, atol=1e-4))


def test_the_head_goes_from_its_place_among_the_weights_to_its_place_in_the_repository(project: Path) -> None:
    head = save(nn.Linear(8, 1), project / "training" / "weights" / "CT-RATE" / "model_binary.pth")
    shell(project / "convertation" / "head", sys.executable, "torch2onnx.py")
    assert same(head, project / "model_repository_running" / "binary_onnx" / "1" / "model.onnx", 8)


@pytest.mark.slow
def test_both_heads_are_converted_in_one_call(project: Path) -> None:
    weights = project / "training" / "weights" / "CT-RATE"
    binary, several = (
        save(nn.Linear(8, 1), weights / "model_binary.pth"),
        save(
            nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.LeakyReLU(0.2), nn.Linear(4, 18)),
            weights / "model_multilabel.pth",
        ),
    )
    head = project / "convertation" / "head"
    said = shell(head, sys.executable, "torch2onnx.py", code=2)  # one of them needs a word, and the other is made
    assert "give --hidden_activation" in said
    assert same(binary, project / "model_repository_running" / "binary_onnx" / "1" / "model.onnx", 8)
    shell(head, sys.executable, "torch2onnx.py", "--hidden-activation", "leaky_relu", "--negative-slope", "0.2")
    assert same(several, project / "model_repository_running" / "multilabel_onnx" / "1" / "model.onnx", 8)


@pytest.mark.slow
def test_a_head_of_several_layers_is_asked_what_is_between_them(project: Path) -> None:
    layers = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.GELU(), nn.Linear(4, 1))
    head = save(layers, project / "training" / "weights" / "CT-RATE" / "model_binary.pth")
    said = shell(project / "convertation" / "head", sys.executable, "torch2onnx.py", code=2)
    assert "weights do not tell what is between them: give --hidden_activation, one of none, relu, gelu" in said
    shell(project / "convertation" / "head", sys.executable, "torch2onnx.py", "--hidden-activation", "gelu")
    assert same(head, project / "model_repository_running" / "binary_onnx" / "1" / "model.onnx", 8)


def test_the_other_head_goes_where_the_script_is_told_to(project: Path) -> None:
    head = save(nn.Linear(8, 18), project / "training" / "weights" / "CT-RATE" / "model_multilabel.pth")
    output = "model_repository_running/multilabel_onnx/1/model.onnx"
    shell(
        project / "convertation" / "head", sys.executable, "torch2onnx.py",
        "--weights", "../../training/weights/CT-RATE/model_multilabel.pth", "--output", f"../../{output}",
    )  # fmt: skip
    assert same(head, project / output, 8)


def test_the_encoder_goes_from_its_place_among_the_weights_to_its_place_in_the_repository(project: Path) -> None:
    weights = project / "training" / "weights" / "CT-RATE" / "ProjectionVIT_Base_V2.pt"
    encoder = save(timm.create_model("test_vit", num_classes=0, img_size=(32, 32)), weights)
    small = ("--architecture", "test_vit", "--img-size", "32", "32")  # the usual one has 86 million parameters
    shell(project / "convertation" / "vit", sys.executable, "torch2onnx.py", *small)
    assert same(encoder, project / "model_repository_running" / "vit_onnx" / "1" / "model.onnx", 3, 32, 32)


def test_weights_that_are_not_there_are_named_with_the_place_where_they_are_looked_for(project: Path) -> None:
    said = shell(project / "convertation" / "head", sys.executable, "torch2onnx.py", code=3)
    assert f"{project}/training/weights/CT-RATE/model_binary.pth is not there" in said
    assert not (project / "model_repository_running").exists()


def test_run_sh_opens_a_shell_beside_trtexec_in_the_folder_of_the_scripts(project: Path) -> None:
    docker = project / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    docker.chmod(docker.stat().st_mode | stat.S_IXUSR)
    path = f"{docker.parent}{os.pathsep}{os.environ['PATH']}"
    given = shell(project / "convertation", "sh", "run.sh", PATH=path).splitlines()
    assert given[0] == "run" and given[-1] == "bash"
    assert given[-2].endswith("/tensorrt:dev")
    assert given[given.index("--volume") + 1] == f"{project}:/workspace"
    assert given[given.index("--workdir") + 1] == "/workspace/convertation"
    assert given[given.index("--gpus") + 1] == "all"
    assert "--interactive" in given
    assert "--tty" not in given  # there is no terminal here, and Docker refuses one that is not there


def test_the_scripts_without_options_go_from_the_weights_to_the_plan(project: Path) -> None:
    save(nn.Linear(8, 1), project / "training" / "weights" / "CT-RATE" / "model_binary.pth")
    head, path = project / "convertation" / "head", f"{project / 'bin'}{os.pathsep}{os.environ['PATH']}"
    shell(head, sys.executable, "torch2onnx.py")
    said = shell(head, sys.executable, "test_onnx.py")
    assert "nothing is compared: that needs --weights and --inputs" in said
    install(project / "bin", 110100)
    said = shell(head, "sh", "convert2trt.sh", PATH=path, PYTHON=sys.executable)
    plan = project / "model_repository_running" / "binary_trt" / "1" / "model.plan"
    assert plan.read_bytes().startswith(HEADER)
    assert "the plan is built in FP32, which is slower" in said  # TensorRT 11 has no flag for half precision
    assert '"precision": "fp32"' in said


def test_convert2trt_takes_two_files_and_nothing_else(project: Path) -> None:
    path = f"{project / 'bin'}{os.pathsep}{os.environ['PATH']}"
    (project / "model.onnx").write_bytes(scaling_model(2.0))
    install(project / "bin", 101300)
    line = ("sh", "convert2trt.sh", f"{project}/model.onnx", f"{project}/model.plan")
    said = shell(project / "convertation" / "vit", *line, PATH=path, PYTHON=sys.executable)
    assert '"precision": "fp16"' in said
    assert (project / "model.plan").read_bytes().startswith(HEADER)


def test_a_repository_is_put_together_of_relative_paths(project: Path) -> None:
    (project / "storage").mkdir()
    (project / "storage" / "vit.onnx").write_bytes(scaling_model(2.0))
    assemble = (sys.executable, "-m", "conversion_jobs.assemble_repository", "--repository", "made")
    shell(project, *assemble, "--models", "vit_onnx=storage/vit.onnx")
    assert sorted(str(f.relative_to(project / "made")) for f in (project / "made").rglob("*") if f.is_file()) == [
        "vit_onnx/1/model.onnx",
        "vit_onnx/config.pbtxt",
    ]
    shell(
        project / "made",
        sys.executable,
        "-m",
        "conversion_jobs.assemble_repository",
        "--repository",
        ".",
        PYTHONPATH=str(project),
    )
