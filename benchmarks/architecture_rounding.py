"""How far float32 itself is from float64 on the models of `benchmarks.architectures`: what two programs can agree to.

    .venv/jobs/bin/python -m benchmarks.architecture_rounding [--architectures efficientnet_b0,repvgg_a0]

The same pictures and weights; the reference is torch in float64. Beside torch and ONNX Runtime in float32 stands what
float64 gives where each weight is half a unit in the last place of float32 off (2^-24 of it, up or down at random).
"""

from __future__ import annotations

import argparse
import copy
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.architectures import CALIBRATION, PICTURES, SIDES, trained_like
from conversion_jobs.onnx.export import export_module
from conversion_jobs.onnx.session import OnnxModel
from jobkit.model_spec import Preprocessing, prepare
from tests.support.sample_data import HYMENOPTERA, MISSING

HALF_AN_ULP = 2.0**-24
OPSET = 17


def main() -> None:
    """Print a row for each architecture with 3 channels and with 1."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--architectures", default="efficientnet_b0,repvgg_a0,resnet18", help="with commas")
    arguments = parser.parse_args()
    if not HYMENOPTERA.is_dir():
        raise SystemExit(MISSING)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print("| architecture | channels | largest logit | torch | torch, one by one | ONNX Runtime | moved | the two |")
    print("|---|---|---|---|---|---|---|---|")
    for architecture in arguments.architectures.split(","):
        for channels in (3, 1):
            print(f"| {architecture} | {channels} | {' | '.join(row(architecture, channels))} |", flush=True)


def row(architecture: str, channels: int) -> list[str]:
    """Return the largest logit, and the largest differences from float64; last, that of torch and ONNX Runtime."""
    side = SIDES[architecture]
    how = Preprocessing(height=side, width=side, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
    photographs = sorted((HYMENOPTERA / "pictures").iterdir())[:: len(SIDES) // 5][: CALIBRATION + PICTURES]
    known = torch.from_numpy(np.stack([prepare(path, how) for path in photographs]))
    model, shown = trained_like(architecture, known), known[CALIBRATION:]
    exact = logits(copy.deepcopy(model).double(), shown.double())
    found = logits(model, shown)
    singly = np.concatenate([logits(model, picture[None]) for picture in shown])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_module(model, (channels, side, side), path, output="logits", opset=OPSET, metadata={})
        served = OnnxModel(path).run(shown.numpy(), len(shown)).astype(np.float64)
    moved = logits(moved_weights(model), shown.double())
    differences = [np.abs(other - exact).max() for other in (found, singly, served, moved)]
    return [f"{np.abs(exact).max():.1f}", *(f"{value:.1e}" for value in (*differences, np.abs(served - found).max()))]


def logits(model: nn.Module, pictures: Tensor) -> NDArray[np.float64]:
    """Return what a model gives for `pictures` [n, C, H, W]."""
    with torch.no_grad():
        values: NDArray[np.float64] = model(pictures).double().numpy()
    return values


def moved_weights(model: nn.Module) -> nn.Module:
    """Return the model in float64 with each weight half a unit in the last place of float32 off."""
    generator, other = np.random.default_rng(0), copy.deepcopy(model).double()
    with torch.no_grad():
        for parameter in other.parameters():
            signs = torch.from_numpy(generator.choice([-1.0, 1.0], tuple(parameter.shape)))
            parameter.mul_(1 + HALF_AN_ULP * signs)
    return other


if __name__ == "__main__":
    main()
