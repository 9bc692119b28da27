"""Labels and preprocessing that came with weights are tried on pictures in folders of their class."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from conversion_jobs import import_weights
from tests.conversion_jobs.conftest import Trained

# Sorted, unlike the order in which the model gives them.
COLORS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200), "gray": (120, 120, 120)}
LABELS = ["red", "green", "blue", "gray"]


class Painter(nn.Module):
    """Tells colors right if its input is RGB in 0..1, less 0.4, through 0.2: the nearest of the prototypes."""

    def __init__(self) -> None:
        super().__init__()
        prototypes = (torch.tensor([COLORS[label] for label in LABELS]) / 255 - 0.4) / 0.2
        self.register_buffer("prototypes", prototypes)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        seen = pictures.mean(dim=(2, 3))
        return -((seen[:, None] - self.prototypes[None]) ** 2).sum(2)


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("painter") / "painter.pt"
    torch.jit.script(Painter().eval()).save(str(path))
    return path


@pytest.fixture(scope="module")
def paintings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paintings")
    generator = np.random.default_rng(11)
    for label, color in COLORS.items():
        (folder / label).mkdir()
        for number in range(12):
            noise = generator.integers(-30, 30, (20, 20, 3))
            picture = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / label / f"{number}.png"), picture[..., ::-1])
    return folder


def bring(trained: Trained, painter: Path, paintings: Path, **options: object) -> import_weights.Result:
    given = {
        "weights": str(painter), "family": "torchscript", "group": "colors", "pictures": paintings,
        "labels": ", ".join(LABELS), "img_size": (16, 16), "mean": (0.4, 0.4, 0.4),
        "std": (0.2, 0.2, 0.2), **options,
    }  # fmt: skip
    return import_weights.run(import_weights.Arguments(**given), trained.context)


def test_right_labels_and_preprocessing_pass_with_their_accuracy(
    trained: Trained, painter: Path, paintings: Path
) -> None:
    result = bring(trained, painter, paintings)
    assert (result.accuracy, result.warnings) == (1.0, [])


def test_swapped_labels_are_named(trained: Trained, painter: Path, paintings: Path) -> None:
    result = bring(trained, painter, paintings, labels="green, red, blue, gray")
    assert result.accuracy == 0.5
    (warning,) = result.warnings
    assert "what is called 'green' lies in the folder 'red'" in warning
    assert "100.0% would be right instead of 50.0%" in warning


def test_swapped_labels_of_a_graph_of_ones_own_are_named(trained: Trained, paintings: Path, tmp_path: Path) -> None:
    example, axes = torch.zeros(2, 3, 16, 16), {"pictures": {0: "n"}, "scores": {0: "n"}}
    torch.onnx.export(
        Painter().eval(), (example,), str(tmp_path / "painter.onnx"), dynamo=False, opset_version=17,
        input_names=["pictures"], output_names=["scores"], dynamic_axes=axes,
    )  # fmt: skip
    right = bring(trained, tmp_path / "painter.onnx", paintings, family="onnx")
    assert (right.accuracy, right.warnings) == (1.0, [])
    swapped = bring(trained, tmp_path / "painter.onnx", paintings, family="onnx", labels="green, red, blue, gray")
    assert swapped.accuracy == 0.5
    assert "what is called 'green' lies in the folder 'red'" in swapped.warnings[0]


def test_labels_in_an_order_that_no_picture_agrees_with_are_near_chance_and_the_right_order_is_named(
    trained: Trained, painter: Path, paintings: Path
) -> None:
    result = bring(trained, painter, paintings, labels="green, blue, gray, red")
    assert result.accuracy == 0.0
    assert "guessing gets 25.0% (binomial test, p = 1)" in result.warnings[0]
    assert "order of the labels" in result.warnings[0] and "RGB or BGR" in result.warnings[0]
    assert "with that order 100.0% would be right instead of 0.0%" in result.warnings[1]


def test_another_mean_is_near_chance_and_the_reading_that_scores_better_is_named(
    trained: Trained, painter: Path, paintings: Path
) -> None:
    result = bring(trained, painter, paintings, mean=(0.4, 0.4, -1.5))
    assert result.accuracy <= 0.25
    assert "guessing gets 25.0%" in result.warnings[0]
    assert result.warnings[-1].startswith("with values of ")
    assert result.warnings[-1].endswith("100.0% would be right instead of 25.0%")


def test_folders_that_are_no_classes_tell_nothing(trained: Trained, painter: Path, pictures: Path) -> None:
    assert bring(trained, painter, pictures).accuracy is None
