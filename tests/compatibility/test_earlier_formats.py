"""Files that users have from before: documented Triton configurations, checkpoints of the older trainer."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from conversion_jobs import torch2onnx
from conversion_jobs.onnx.export import export_module
from conversion_jobs.onnx.graph import interface, read_graph
from conversion_jobs.triton.repository_check import problems_of
from jobkit.job import Context

ONNX_CONFIG = """\
name: "my_model"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [
  { name: "input", data_type: TYPE_FP32, dims: [3, 224, 224] }
]
output [
  { name: "logits", data_type: TYPE_FP32, dims: [1000] }
]
"""
PLAN_CONFIG = """\
name: "my_trt_model"
platform: "tensorrt_plan"
max_batch_size: 8
input [
  { name: "input", data_type: TYPE_FP32, dims: [3, 224, 224] }
]
output [
  { name: "logits", data_type: TYPE_FP32, dims: [1000] }
]
instance_group [ { kind: KIND_GPU } ]
dynamic_batching { preferred_batch_size: [4, 8] }
"""


class Means(nn.Module):
    """A thousand values of a picture's mean color."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 1000)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.fc(pictures.mean((2, 3)))


def repository(folder: Path, onnx_config: str) -> Path:
    """Write the documented layout: `<model>/1/model.onnx | model.plan` and `<model>/config.pbtxt`."""
    for name in ("my_model", "my_trt_model"):
        (folder / name / "1").mkdir(parents=True)
    shape = (3, 224, 224)
    graph = folder / "my_model" / "1" / "model.onnx"
    export_module(Means().eval(), shape, graph, output="logits", opset=17, metadata={})
    (folder / "my_model" / "config.pbtxt").write_text(onnx_config)
    (folder / "my_trt_model" / "1" / "model.plan").write_bytes(b"ftrt and what follows")
    (folder / "my_trt_model" / "config.pbtxt").write_text(PLAN_CONFIG)
    return folder


def test_the_documented_configurations_are_taken(tmp_path: Path) -> None:
    assert problems_of(repository(tmp_path, ONNX_CONFIG)) == []


def test_the_documented_configuration_with_another_number_of_classes_is_not(tmp_path: Path) -> None:
    (found,) = problems_of(repository(tmp_path, ONNX_CONFIG.replace("1000", "999")))
    assert found == "my_model/1/model.onnx: output 'logits' has dims [999], in the graph [1000]"


class Older(nn.Module):
    """The model of the older trainer: a timm backbone without its classes, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("test_resnet", num_classes=0)
        self.fc = nn.Linear(self.backbone.num_features, 4)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.fc(self.backbone(pictures))


def test_a_checkpoint_of_the_older_trainer_is_converted_by_its_name(tmp_path: Path) -> None:
    model = Older().eval()
    weights = tmp_path / "epoch=1-train_loss=0.33753-val_loss=0.01454-val_accuracy=0.99598.ckpt"
    torch.save(model.state_dict(), weights)
    arguments = torch2onnx.Arguments(
        family="classifier", architecture="test_resnet", img_size=(32, 32), weights=weights,
        output=tmp_path / "model.onnx",
    )  # fmt: skip
    torch2onnx.run(arguments, Context(tmp_path, None))
    found = interface(read_graph(tmp_path / "model.onnx"))
    assert [found.inputs[0].shape, found.outputs[0].shape] == [(None, 3, 32, 32), (None, 4)]
