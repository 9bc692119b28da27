"""Large models: exported and verified without copies of their weights, with the same numbers as small ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch

from conversion_jobs.onnx import streamed_export
from conversion_jobs.onnx.export import export, export_module
from conversion_jobs.onnx.graph import read_graph
from conversion_jobs.onnx.session import OnnxModel, largest_values
from jobkit.errors import DataValidationError
from jobkit.experiment import Experiment, read_spec
from tests.conversion_jobs.conftest import Trained
from tests.support.trained import make_model


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model counts as large."""
    monkeypatch.setattr(streamed_export, "LARGE", 0)


def exported(path: Path) -> torch.nn.Module:
    torch.manual_seed(8)
    model = timm.create_model("test_vit", num_classes=0, img_size=(64, 64)).eval()
    export_module(model, (3, 64, 64), path, output="embedding", opset=17, metadata={"group": "ct"})
    return model


def test_a_streamed_graph_has_the_numbers_of_its_model_and_stores_matrices_as_they_are_used(
    large: None, tmp_path: Path
) -> None:
    model = exported(tmp_path / "model.onnx")
    assert streamed_export.is_streamed(model)
    inputs = np.random.default_rng(3).normal(size=(3, 3, 64, 64)).astype(np.float32)
    wanted = model(torch.from_numpy(inputs)).detach().numpy()
    plain = onnxruntime.InferenceSession(str(tmp_path / "model.onnx")).run(None, {"input": inputs})[0]
    np.testing.assert_allclose(plain, wanted, atol=1e-4)
    np.testing.assert_allclose(OnnxModel(tmp_path / "model.onnx").run(inputs, 2), wanted, atol=1e-4)
    whole = onnx.load(tmp_path / "model.onnx")
    weights = {tensor.name for tensor in whole.graph.initializer}
    assert [value.name for value in whole.graph.input] == ["input"]
    assert not [node for node in whole.graph.node if node.op_type == "Transpose" and node.input[0] in weights]
    assert whole.metadata_props[0].value == "ct"


def test_the_usual_export_and_the_streamed_one_give_the_same_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(tmp_path / "usual.onnx")
    monkeypatch.setattr(streamed_export, "LARGE", 0)
    exported(tmp_path / "streamed.onnx")
    inputs = np.random.default_rng(3).normal(size=(2, 3, 64, 64)).astype(np.float32)
    first, second = (OnnxModel(tmp_path / f"{name}.onnx").run(inputs, 2) for name in ("usual", "streamed"))
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_a_swin_keeps_its_attention_mask_which_no_checkpoint_has(large: None, tmp_path: Path) -> None:
    torch.manual_seed(8)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=0, img_size=56, depths=(2, 2), embed_dim=24, num_heads=(2, 4)
    ).eval()
    for block in (module for name, module in model.named_modules() if name.endswith("attn.qkv")):
        block.weight.data.mul_(10)  # as after training: attention that is not spread evenly
    inputs = np.random.default_rng(3).normal(size=(3, 3, 56, 56)).astype(np.float32)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(inputs)).numpy()
        export_module(model, (3, 56, 56), tmp_path / "model.onnx", output="embedding", opset=17, metadata={})
        np.testing.assert_array_equal(model(torch.from_numpy(inputs)).numpy(), wanted)
    for batch in (1, 3):
        np.testing.assert_allclose(OnnxModel(tmp_path / "model.onnx").run(inputs, batch), wanted, atol=1e-5)


def test_weights_that_stay_in_the_file_are_found_by_what_runs_parts_of_the_graph(large: None, tmp_path: Path) -> None:
    exported(tmp_path / "model.onnx")
    graph = read_graph(tmp_path / "model.onnx")
    assert len(graph.SerializeToString()) < (tmp_path / "model.onnx").stat().st_size / 2
    inputs = np.ones((1, 3, 64, 64), np.float32)
    apart = {found.node: found.largest for found in largest_values(graph, inputs, tmp_path)}
    whole = {found.node: found.largest for found in largest_values(onnx.load(tmp_path / "model.onnx"), inputs)}
    assert apart == pytest.approx(whole, rel=1e-4)


def test_a_large_model_is_verified_from_where_its_weights_are(large: None, trained: Trained) -> None:
    experiment = Experiment(trained.experiment)
    spec = read_spec(trained.bottle, experiment)
    path = trained.bottle.path(experiment.onnx)
    path.parent.mkdir()
    export(make_model(spec, 3), spec, path, 17, {"experiment": experiment.folder})
    assert all(verdict.passed for verdict in trained.verify().verdicts)


def test_a_large_file_that_is_cut_off_or_whose_weights_have_another_size_is_refused(
    large: None, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    exported(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataValidationError, match=r"model\.onnx is not an ONNX file, or is cut off"):
        read_graph(path)
    path.write_bytes(b"")
    with pytest.raises(DataValidationError, match="it is empty"):
        read_graph(path)
