"""Architectures of other families than the fixture's: exported, they answer as torch does, with 3 channels and 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.architectures import trained_like
from conversion_jobs.onnx.export import export_module
from conversion_jobs.onnx.session import OnnxModel


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("architecture", ["test_byobnet", "test_convnext", "test_efficientnet"])
def test_a_graph_answers_as_its_model_at_every_batch(architecture: str, channels: int, tmp_path: Path) -> None:
    side = 32
    pictures = np.random.default_rng(3).normal(size=(11, channels, side, side)).astype(np.float32)
    model, inputs = trained_like(architecture, torch.from_numpy(pictures[3:])), pictures[:3]
    with torch.inference_mode():
        wanted = model(torch.from_numpy(inputs)).numpy()
    assert np.ptp(wanted, axis=0).max() > 0.1  # the answers depend on the picture
    export_module(model, inputs.shape[1:], tmp_path / "model.onnx", output="logits", opset=17, metadata={})
    for batch in (1, 3):
        np.testing.assert_allclose(OnnxModel(tmp_path / "model.onnx").run(inputs, batch), wanted, atol=1e-4)
