"""Both of torch's exporters: which one makes the graph, by what verdict, and which opset comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from conversion_jobs.detection.export import export_detector
from conversion_jobs.families.sources import load_source
from conversion_jobs.onnx.export import export_module
from conversion_jobs.onnx.graph import interface, read_graph
from conversion_jobs.onnx.session import OnnxModel
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.model_spec import DetectorSpec, NonMaxSuppression, Preprocessing
from nightshift_common.options.weights import SourceOptions
from tests.conversion_jobs.conftest import Trained


class Length(nn.Module):
    """The batch's size as one of Python's numbers, which is a constant in a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, values: Tensor) -> Tensor:
        scores: Tensor = self.fc(values[torch.arange(len(values))])
        return scores


class Asinh(nn.Module):
    """A function that the exporter on TorchScript does not know."""

    def forward(self, values: Tensor) -> Tensor:
        return values.asinh()


class Branch(nn.Module):
    """A branch that depends on values: what the example takes is all that a trace knows, and torch.export refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, values: Tensor) -> Tensor:
        scores: Tensor = self.fc(values)
        return scores + 1 if values.abs().sum() > 0 else scores


class Chaotic(nn.Module):
    """The logistic map, 60 times: a change in the last bit becomes one of the whole value (Lyapunov exponent > 0)."""

    def forward(self, values: Tensor) -> Tensor:
        found = values.sigmoid().flatten(1)
        for _ in range(60):
            found = 3.9 * found * (1 - found)
        return found


class Attention(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(values, values, values).flatten(1)


def answers(path: Path, model: nn.Module, inputs: np.ndarray, batch: int) -> float:
    """Return how far graph and model are apart."""
    parts = [inputs[start : start + batch] for start in range(0, len(inputs), batch)]
    with torch.no_grad():
        wanted = np.concatenate([model(torch.from_numpy(part)).numpy() for part in parts])
    return float(np.abs(OnnxModel(path).run(inputs, batch) - wanted).max())


@pytest.mark.slow
def test_a_model_that_the_older_exporter_does_not_take_gets_the_newer_ones_graph(tmp_path: Path) -> None:
    model, path = Asinh(), tmp_path / "model.onnx"
    made = export_module(model, (4,), path, output="embedding", opset=18, metadata={"group": "g"})
    assert made.exporter == "dynamo"
    assert "aten::asinh" in made.refused["torchscript"]
    inputs = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    assert max(answers(path, model, inputs, batch) for batch in (1, 2, 3, 6)) < 1e-5


def test_a_graph_whose_trace_took_the_batch_for_a_constant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataValidationError, match="torchscript: the graph fails on a batch of 1"):
        export_module(
            Length(), (4,), tmp_path / "a.onnx", output="logits", opset=18, metadata={}, exporter="torchscript"
        )


def test_a_model_that_no_exporter_gets_right_is_refused_with_both_reasons(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(DataValidationError, match=r"\[N, 4\]: torchscript: on noise, at batch [13], .*; dynamo: \S+"):
        export_module(Branch().eval(), (4,), tmp_path / "model.onnx", output="logits", opset=18, metadata={})


def test_a_model_that_noise_alone_drives_apart_is_not_refused_for_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    made = export_module(Chaotic().eval(), (40,), path, output="embedding", opset=17, metadata={})
    assert (made.exporter, made.refused) == ("torchscript", {})
    inputs = np.random.default_rng(0).standard_normal((3, 40), np.float32)
    nearby = inputs * np.float32(1 + 2**-22)
    with torch.no_grad():
        first, second = (Chaotic()(torch.from_numpy(values)).numpy() for values in (inputs, nearby))
    assert np.abs(first - second).max() > 0.1  # it is as chaotic as it says


@pytest.mark.slow
def test_the_newer_exporter_works_where_weights_are_opened_and_says_that_it_took_another_opset(
    trained: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    result = trained.export(exporter="dynamo", opset=17)
    assert (result.made.exporter, result.made.opset) == ("dynamo", 18)
    assert "the graph has opset 18, not 17" in caplog.text
    path = trained.bottle.local(result.onnx)
    found = interface(read_graph(path))
    assert [(t.name, t.shape) for t in (*found.inputs, *found.outputs)] == [
        ("input", (None, 3, 32, 32)),
        ("logits", (None, 3)),
    ]
    content = path.read_bytes()
    assert b".py" not in content  # it notes the source of each node
    assert content == trained.bottle.local(trained.export(exporter="dynamo").onnx).read_bytes()
    assert all(verdict.passed for verdict in trained.verify().verdicts)


def test_large_weights_go_one_by_one_into_the_newer_exporters_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = nn.Sequential(nn.Linear(40, 30), nn.GELU(), nn.Linear(30, 3)).eval(), tmp_path / "model.onnx"
    export_module(model, (40,), path, output="logits", opset=18, metadata={"group": "g"}, exporter="dynamo")
    whole = onnx.load(path)
    assert sorted(len(tensor.raw_data) for tensor in whole.graph.initializer if len(tensor.dims) == 2) == [360, 4800]
    assert whole.metadata_props[0].value == "g"
    inputs = np.random.default_rng(1).normal(size=(3, 40)).astype(np.float32)
    assert answers(path, model, inputs, 3) < 1e-5


def test_opset_12_is_made_where_the_model_needs_nothing_newer(trained: Trained) -> None:
    result = trained.export(opset=12)
    assert interface(read_graph(trained.bottle.local(result.onnx))).opset == 12
    assert all(verdict.passed for verdict in trained.verify().verdicts)


def test_an_opset_that_is_too_old_is_refused_by_the_operator_and_the_opset_that_has_it(tmp_path: Path) -> None:
    says = "computes aten::scaled_dot_product_attention, which needs opset 14: opset 12 cannot say it"
    with pytest.raises(DataValidationError, match=says):
        export_module(Attention(), (2, 5, 4), tmp_path / "a.onnx", output="embedding", opset=12, metadata={})


@pytest.mark.parametrize(
    ("options", "says"),
    [({"opset": 12}, "needs opset 13"), ({"opset": 17, "exporter": "dynamo"}, "handed over as TorchScript")],
)
def test_a_detector_that_the_options_do_not_allow_is_a_configuration_error(
    options: dict[str, object], says: str, tmp_path: Path
) -> None:
    spec = DetectorSpec(
        group="g", architecture="yolo", labels=["a"], preprocessing=Preprocessing(height=64, width=64), task="detect",
        suppression=NonMaxSuppression(),
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match=says):
        export_detector(nn.Identity(), spec, tmp_path / "model.onnx", metadata={}, **options)


def test_torchscript_is_not_for_the_newer_exporter(tmp_path: Path) -> None:
    script = torch.jit.trace(nn.Linear(4, 3).eval(), torch.zeros(2, 4))
    with pytest.raises(DataValidationError, match="dynamo: the model is TorchScript"):
        export_module(script, (4,), tmp_path / "a.onnx", output="logits", opset=18, metadata={}, exporter="dynamo")


def test_a_factory_whose_trace_answers_otherwise_is_refused_with_the_way_out(tmp_path: Path) -> None:
    options = SourceOptions(family="factory", factory=f"{__name__}:pictures_with_a_branch", img_size=(8, 8))
    torch.save(pictures_with_a_branch().state_dict(), tmp_path / "weights.pt")
    module = load_source(tmp_path / "weights.pt", options).module.eval()
    with pytest.raises(DataValidationError, match=r"torchscript: on noise, at batch [13], .*torch\.jit\.script"):
        export_module(module, (3, 8, 8), tmp_path / "model.onnx", output="logits", opset=18, metadata={})
    scripted = torch.jit.script(module)
    export_module(scripted, (3, 8, 8), tmp_path / "model.onnx", output="logits", opset=18, metadata={})


def pictures_with_a_branch() -> nn.Module:
    """What the factory above builds: pictures [N, 3, 8, 8] in."""
    return nn.Sequential(nn.AdaptiveAvgPool2d((2, 1)), nn.Conv2d(3, 2, 1, bias=False), nn.Flatten(), Branch())
