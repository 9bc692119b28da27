"""Transforms: every parameter matters, nothing writes into its input, and what is random is seeded."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from training_jobs.classifier import transforms
from training_jobs.classifier.transforms.augmentation import Augmentation
from training_jobs.classifier.transforms.auto_augment import OPERATIONS
from training_jobs.classifier.transforms.color import black_body

ANY: TypeAdapter[Augmentation] = TypeAdapter(transforms.AnyAugmentation)
CLASSES = {
    name: member
    for member in get_args(get_args(transforms.AnyAugmentation)[0])
    for name in get_args(member.model_fields["type"].annotation)
}
CHANGED: dict[str, dict[str, Any]] = {  # another value of every parameter, and what it needs to matter
    "random_crop_from_borders": {"crop_ratio": 0.3},
    "random_resized_crop": {"scale": (0.05, 0.1), "ratio": (3.0, 4.0)},
    "horizontal_flip": {},
    "vertical_flip": {},
    "shift_scale_rotate": {"shift_limit": 0.3, "scale_limit": 0.6, "rotate_limit": (80.0, 90.0), "fill_value": 99},
    "elastic_transform": {"alpha": 900.0, "sigma": 5.0},
    "grid_destortion": {"num_steps": 3, "distort_limit": 0.9},
    "grid_distortion": {"num_steps": 3, "distort_limit": 0.9},
    "random_brightness_contrast": {"brightness_limit": (0.4, 0.4), "contrast_limit": (0.5, 0.5)},
    "median_blur": {"blur_limit": (9, 9)},
    "rgb_shift": {"r_shift_limit": (50.0, 50.0), "g_shift_limit": (50.0, 50.0), "b_shift_limit": (50.0, 50.0)},
    "planckian_jitter": {"temperature_limit": (2000.0, 2000.0)},
    "coarse_dropout": {
        "max_holes": 20, "min_holes": 1, "max_height": 20, "max_width": 20, "min_height": 1, "min_width": 1,
        "fill_value": 200,
    },
    "randaugment": {"num_transforms": 5, "magnitude": 2.0},
    "trivialaugment": {},
}  # fmt: skip
NEEDS = {"elastic_transform": {"alpha": 300.0, "sigma": 9.0}}


def picture(channels: int = 3) -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(1)
    plain = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return plain if channels == 3 else plain[:, :, 0].copy()


def made(name: str, **values: Any) -> Augmentation:
    return ANY.validate_python({"type": name, "p": 1.0, **NEEDS.get(name, {}), **values}, strict=True)


def results(augmentation: Augmentation, channels: int = 3) -> list[np.ndarray[Any, Any]]:
    source = picture(channels)
    source.setflags(write=False)
    return [augmentation(source, np.random.default_rng(seed)) for seed in range(6)]


def same(some: list[np.ndarray[Any, Any]], others: list[np.ndarray[Any, Any]]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("name", CLASSES)
def test_an_augmentation_changes_pictures_by_the_seed_alone(name: str) -> None:
    source = picture()
    some = results(made(name))
    assert same(some, results(made(name)))
    assert any(not np.array_equal(result, source) for result in some)
    assert all(result.dtype == np.uint8 and result.ndim == 3 for result in some)


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in ("rgb_shift", "planckian_jitter")])
def test_an_augmentation_takes_gray_pictures(name: str) -> None:
    assert all(result.dtype == np.uint8 and result.ndim == 2 for result in results(made(name), channels=1))


@pytest.mark.parametrize("name", CLASSES)
def test_p_is_the_probability_of_a_change(name: str) -> None:
    source = picture()
    assert all(np.array_equal(result, source) for result in results(made(name, p=0.0)))


def test_every_parameter_has_a_case() -> None:
    for name, member in CLASSES.items():
        assert set(CHANGED[name]) == set(member.model_fields) - {"type", "p"}, name


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in CHANGED.items() for key in keys])
def test_a_parameter_changes_the_result(name: str, key: str) -> None:
    assert not same(results(made(name)), results(made(name, **{key: CHANGED[name][key]})))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("median_blur", {"blur_limit": 4}),
        ("median_blur", {"blur_limit": 1}),
        ("random_crop_from_borders", {"crop_ratio": 0.5}),
        ("shift_scale_rotate", {"scale_limit": -1.5}),
        ("grid_distortion", {"distort_limit": 1.0}),
        ("planckian_jitter", {"temperature_limit": (1000.0, 5000.0)}),
        ("coarse_dropout", {"min_holes": 9, "max_holes": 8}),
        ("coarse_dropout", {"fill_value": 256}),
        ("random_resized_crop", {"scale": (0.5, 0.1)}),
        ("randaugment", {"magnitude": 11.0}),
        ("horizontal_flip", {"p": 1.5}),
    ],
)
def test_values_outside_their_bounds_are_refused(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        made(name, **values)


def test_no_shift_scale_or_turn_leaves_the_picture() -> None:
    still = made("shift_scale_rotate", shift_limit=0.0, scale_limit=0.0, rotate_limit=0.0)
    assert np.array_equal(still(picture(), np.random.default_rng(0)), picture())


def test_a_quarter_turn_is_exact() -> None:
    square = picture()[:48, :48]
    turned = made("shift_scale_rotate", shift_limit=0.0, scale_limit=0.0, rotate_limit=(90.0, 90.0))
    assert np.array_equal(turned(square, np.random.default_rng(0)), np.rot90(square))


def test_brightness_and_contrast_follow_their_formula() -> None:
    fixed = made("random_brightness_contrast", brightness_limit=(0.1, 0.1), contrast_limit=(-0.5, -0.5))
    expected = np.clip(np.rint(picture().astype(np.float32) * 0.5 + 25.5), 0, 255)
    assert np.abs(fixed(picture(), np.random.default_rng(0)).astype(int) - expected).max() <= 1


def test_elastic_displacements_are_as_strong_on_a_coarse_grid_as_pixel_by_pixel() -> None:
    """The noise is made on a grid coarser by sigma / 2; its strength must be that of the definition."""
    import cv2

    size, sigma, alpha = 400, 12.0, 100.0
    noise = np.random.default_rng(0).uniform(-1, 1, (size, size)).astype(np.float32)
    defined = (cv2.GaussianBlur(noise, (0, 0), sigma) * alpha).std()
    quick = (
        made("elastic_transform", alpha=alpha, sigma=sigma)._displacement(size, size, np.random.default_rng(1)).std()
    )
    assert quick == pytest.approx(defined, rel=0.2)


def test_a_grid_distortion_keeps_the_borders() -> None:
    distorted = made("grid_distortion", distort_limit=0.5)(picture(), np.random.default_rng(0))
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert np.array_equal(distorted[corner], picture()[corner])


def test_a_black_body_is_warm_when_cool_and_white_at_daylight() -> None:
    candle, daylight, sky = black_body(2000), black_body(6504), black_body(15000)
    assert candle[0] > 3 * candle[2]
    assert sky[2] > sky[0]
    assert daylight == pytest.approx([1, 1, 1], abs=0.06)


def test_coarse_dropout_fills_as_many_pixels_as_it_says() -> None:
    holes = made("coarse_dropout", max_holes=1, max_height=0.5, max_width=0.25, fill_value=0)
    source = np.full((40, 80, 3), 255, np.uint8)
    assert (holes(source, np.random.default_rng(3)) == 0).all(2).sum() == 20 * 20


@pytest.mark.parametrize("name", [n for n in OPERATIONS if n not in ("autocontrast", "equalize", "identity")])
def test_an_operation_without_strength_changes_nothing(name: str) -> None:
    assert np.abs(OPERATIONS[name][0](picture(), 0.0).astype(int) - picture()).max() <= 1
