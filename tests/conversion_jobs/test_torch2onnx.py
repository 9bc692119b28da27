"""Weights at hand, without a bottle: every family to ONNX, and compared with the same real inputs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import nn

from conversion_jobs import test_onnx, torch2onnx
from conversion_jobs.onnx.graph import interface, read_graph
from conversion_jobs.torch2onnx import legacy_command_line
from jobkit.classifier import Classifier
from jobkit.errors import ConfigurationError, DataValidationError, JobError
from jobkit.job import Context, parse

CONTEXT = Context(Path(), None)


def save(module: nn.Module, path: Path) -> Path:
    torch.save(module.eval().state_dict(), path)
    return path


def small_cnn() -> nn.Module:
    """What `--factory tests.conversion_jobs.test_torch2onnx:small_cnn` builds."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def export(family: str, weights: Path, folder: Path, **options: Any) -> Path:
    arguments = torch2onnx.Arguments(family=family, weights=weights, output=folder / "model.onnx", **options)
    return Path(torch2onnx.run(arguments, CONTEXT).onnx)


def compare(graph: Path, weights: Path | None, inputs: Path | None, **options: Any) -> test_onnx.Result:
    return test_onnx.run(test_onnx.Arguments(onnx=graph, weights=weights, inputs=inputs, **options), CONTEXT)


def weights_of(family: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    torch.manual_seed(1)
    path = folder / "weights.pt"
    if family == "classifier":
        return save(Classifier("test_resnet", 3), path), {"architecture": "test_resnet", "img_size": (32, 48)}
    if family == "vit":
        encoder = timm.create_model("test_vit", num_classes=10, img_size=(64, 64))
        return save(encoder, path), {"architecture": "test_vit", "img_size": (64, 64)}
    if family == "factory":
        return save(small_cnn(), path), {"factory": f"{__name__}:small_cnn", "img_size": (32, 32)}
    torch.jit.trace(small_cnn().eval(), torch.zeros(2, 3, 32, 32)).save(str(path))
    return path, {"img_size": (32, 32)}


@pytest.mark.parametrize(
    ("family", "output"),
    [("classifier", "logits"), ("vit", "embedding"), ("factory", "logits"), ("torchscript", "logits")],
)
def test_each_family_of_pictures_gives_the_numbers_of_its_weights(
    family: str, output: str, tmp_path: Path, pictures: Path
) -> None:
    weights, options = weights_of(family, tmp_path)
    graph = export(family, weights, tmp_path, **options)
    found = interface(read_graph(graph))
    assert found.inputs[0].shape == (None, 3, *options["img_size"])
    assert found.outputs[0].name == output
    result = compare(graph, weights, pictures)
    assert result.compared == 5
    assert all(verdict.passed for verdict in result.verdicts)


@pytest.mark.parametrize("activation", ["none", "sigmoid", "softmax"])
def test_a_head_is_read_from_its_matrices_and_compared_on_real_embeddings(tmp_path: Path, activation: str) -> None:
    torch.manual_seed(2)
    layers = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 11), nn.ReLU(), nn.Linear(11, 3))
    weights = save(layers, tmp_path / "model_multilabel.pth")
    graph = export("head", weights, tmp_path, activation=activation, hidden_activation="relu")
    embeddings = torch.randn(6, 16)
    np.save(tmp_path / "embeddings.npy", embeddings.numpy())
    assert compare(graph, weights, tmp_path / "embeddings.npy").compared == 6
    wanted = layers.eval()(embeddings)
    wanted = {"none": wanted, "sigmoid": wanted.sigmoid(), "softmax": wanted.softmax(1)}[activation].detach().numpy()
    answered = onnxruntime.InferenceSession(str(graph)).run(None, {"input": embeddings.numpy()})[0]
    np.testing.assert_allclose(answered, wanted, atol=1e-5)


def test_normalization_inside_the_graph_takes_pictures_as_they_are(tmp_path: Path, pictures: Path) -> None:
    weights, options = weights_of("classifier", tmp_path)
    outside = export("classifier", weights, tmp_path, **options)
    graph = tmp_path / "inside" / "model.onnx"
    inside = export("classifier", weights, graph.parent, normalize=True, **options)
    raw = np.random.default_rng(1).integers(0, 255, (2, 3, 32, 48)).astype(np.float32)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    first = onnxruntime.InferenceSession(str(outside)).run(None, {"input": (raw / 255 - mean) / std})[0]
    second = onnxruntime.InferenceSession(str(inside)).run(None, {"input": raw})[0]
    np.testing.assert_allclose(first, second, atol=1e-4)
    assert compare(inside, weights, pictures).compared == 5


def test_another_checkpoint_and_changed_numbers_are_refused(tmp_path: Path, pictures: Path) -> None:
    weights, options = weights_of("factory", tmp_path)
    graph = export("factory", weights, tmp_path, **options)
    (tmp_path / "other").mkdir()
    other = save(small_cnn(), tmp_path / "other" / "weights.pt")
    with pytest.raises(DataValidationError, match="the file was exported from"):
        compare(graph, other, pictures)
    model = onnx.load(graph)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("0.weight"))
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, graph)
    with pytest.raises(DataValidationError, match=r"is not the model of .*worst: \d\.png"):
        compare(graph, weights, pictures)


@pytest.mark.parametrize(
    ("family", "options", "error", "says"),
    [
        ("classifier", {"architecture": "test_resnot"}, ConfigurationError, "no architecture 'test_resnot'"),
        ("classifier", {"architecture": "resnet18"}, DataValidationError, "does not fit the model"),
        ("vit", {"architecture": "test_resnet"}, DataValidationError, "does not fit the model"),
        ("head", {}, DataValidationError, "is not a head of linear layers"),
        ("torchscript", {}, DataValidationError, "is not a TorchScript model"),
        ("factory", {"factory": "tests:nothing"}, ConfigurationError, "is not module:function"),
        ("factory", {"factory": "os:getcwd"}, ConfigurationError, "gave a str, not a torch module"),
    ],
)
def test_weights_that_do_not_fit_leave_no_file(
    tmp_path: Path, family: str, options: dict[str, Any], error: type[JobError], says: str
) -> None:
    weights = save(Classifier("test_resnet", 3), tmp_path / "weights.pt")
    with pytest.raises(error, match=says):
        export(family, weights, tmp_path / "out", **options)
    assert not list(tmp_path.glob("out/*"))


def test_a_torchscript_archive_given_as_weights_is_named_for_what_it_is(tmp_path: Path) -> None:
    weights, _ = weights_of("torchscript", tmp_path)
    with pytest.raises(DataValidationError, match="is a TorchScript archive: convert it with --family torchscript"):
        export("classifier", weights, tmp_path, architecture="test_resnet")


def test_a_file_is_checked_without_weights_too_and_the_result_says_that_nothing_was_compared(tmp_path: Path) -> None:
    weights, options = weights_of("factory", tmp_path)
    result = compare(export("factory", weights, tmp_path, **options), None, None)
    assert result.compared == 0
    assert [verdict.name for verdict in result.verdicts] == ["finite"]


def test_the_earlier_command_lines_are_understood(tmp_path: Path) -> None:
    line = ["--weights", "/abs/best.pth", "--output", "/abs/model.onnx", "--img-size", "224", "320", "--family", "vit"]
    arguments = parse(torch2onnx.Arguments, legacy_command_line([*line, "--architecture", "test_vit"]))
    assert arguments.img_size == (224, 320)
    gray = parse(torch2onnx.Arguments, legacy_command_line([*line, "--architecture", "test_vit", "--channels", "1"]))
    assert gray.channels == 1
    with pytest.raises(ConfigurationError, match="--channels: Input should be 1 or 3"):
        parse(torch2onnx.Arguments, legacy_command_line([*line, "--architecture", "test_vit", "--channels", "2"]))
    with pytest.raises(ConfigurationError, match="family vit needs architecture"):
        parse(torch2onnx.Arguments, legacy_command_line(line))


@pytest.mark.slow
def test_both_commands_run_from_a_shell(tmp_path: Path, pictures: Path) -> None:
    weights, _ = weights_of("torchscript", tmp_path)
    command = [sys.executable, "-m", "conversion_jobs.torch2onnx", "--family", "torchscript", "--img-size", "32", "32"]
    paths = ["--weights", str(weights), "--output", str(tmp_path / "model.onnx")]
    done = subprocess.run([*command, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    command = [sys.executable, "-m", "conversion_jobs.test_onnx", "--onnx", str(tmp_path / "model.onnx")]
    rest = ["--weights", str(weights), "--inputs", str(pictures)]
    done = subprocess.run([*command, *rest], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["result"]["compared"] == 5
