"""What a letterboxed picture is padded with: by NumPy's padding, which is another code than ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jobkit.model_spec import ModelSpec, Preprocessing, fit, parse_spec, resized
from nightshift_common.options.weights import Border

NUMPY: dict[Border, dict[str, Any]] = {
    "constant": {"mode": "constant", "constant_values": 9},
    "wrap": {"mode": "wrap"},
    "reflect": {"mode": "reflect"},
    "replicate": {"mode": "edge"},
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(20, 32), (32, 7), (5, 32), (32, 1)], ids=str)
@pytest.mark.parametrize("border", NUMPY)
def test_the_padding_is_that_of_numpy(border: Border, size: tuple[int, int], channels: int) -> None:
    """Pictures narrower than half of the input among them, whose padding is wider than they are."""
    picture = np.random.default_rng(1).integers(0, 256, (*size, channels), np.uint8)
    how = Preprocessing(height=32, width=32, channels=channels, border=border, pad_value=9)
    assert resized(*size, how) == size
    beside = [((32 - side) // 2, 32 - side - (32 - side) // 2) for side in size]
    assert np.array_equal(fit(picture, how), np.pad(picture, [*beside, (0, 0)], **NUMPY[border]))


def test_a_row_of_four_pixels_padded_by_two_on_both_sides() -> None:
    picture = np.array([[10, 20, 30, 40]] * 8, np.uint8)[:, :, None]

    def row(border: Border) -> list[int]:
        how = Preprocessing(height=8, width=8, channels=1, border=border, pad_value=7)
        return [int(value) for value in fit(picture, how)[0, :, 0]]

    assert row("constant") == [7, 7, 10, 20, 30, 40, 7, 7]
    assert row("wrap") == [30, 40, 10, 20, 30, 40, 10, 20]
    assert row("reflect") == [30, 20, 10, 20, 30, 40, 30, 20]
    assert row("replicate") == [10, 10, 10, 20, 30, 40, 40, 40]


def test_a_description_of_before_there_were_borders_means_what_it_meant() -> None:
    preprocessing = '{"height": 8, "width": 8, "channels": 1, "pad_value": 7, "mean": [0.5], "std": [1]}'
    text = f'{{"group": "pages", "architecture": "a", "labels": ["a", "b"], "preprocessing": {preprocessing}}}'
    spec = parse_spec(text, "model.json")
    assert isinstance(spec, ModelSpec)
    assert (spec.preprocessing.border, spec.preprocessing.pad_value) == ("constant", 7)
    assert (spec.flip_tta, spec.calibration, spec.temperature) == ("off", None, 1.0)
