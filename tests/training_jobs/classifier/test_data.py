"""The input pipeline: the same batches however they are made, and exactly what serving will see."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from jobkit import model_spec
from jobkit.errors import ConfigurationError, DataValidationError
from tests.training_jobs.classifier.support import config, draw, examples
from training_jobs.classifier import data
from training_jobs.classifier.data import BatchSampler, Part, Pictures, balanced_shares, loaders
from training_jobs.classifier.examples import Example, Examples

BRIGHTER = [{"type": "random_brightness_contrast", "p": 1.0, "brightness_limit": [0.2, 0.3]}]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("resize", ["letterbox", "stretch", "wrap"])
@pytest.mark.parametrize("channels", [1, 3])
def test_validation_sees_what_serving_sees(found: Examples, resize: str, channels: int, quick: bool) -> None:
    padding = {"letterbox": {"fill_value": 7}, "wrap": {"border": "wrap"}}
    steps = [{"type": "resize"}] if resize == "stretch" else [
        {"type": "longest_max_size"}, {"type": "pad_if_needed", **padding[resize]}
    ]  # fmt: skip
    chosen = config(dataset__pre_transforms=steps, model__in_channels=channels)
    pictures = Pictures(chosen, found.val, training=False)
    if quick:
        assert pictures.cache()
    for index, example in enumerate(found.val):
        expected = model_spec.read_picture(example.path, chosen.preprocessing)
        assert np.array_equal(pictures.picture(0, index)[0], expected)


def test_padding_may_come_after_augmentation(found: Examples) -> None:
    after = config(
        dataset__pre_transforms=[{"type": "longest_max_size"}],
        dataset__post_transforms=[{"type": "pad_if_needed"}],
        dataset__train_augmentations=BRIGHTER,
    )
    before = config(dataset__train_augmentations=BRIGHTER)
    assert Pictures(after, found.train, True).picture(0, 0)[0][0].max() == 0  # the padding was not brightened
    assert Pictures(before, found.train, True).picture(0, 0)[0][0].min() > 40


@pytest.mark.parametrize("pads_first", [True, False])
@pytest.mark.parametrize("border", ["wrap", "reflect", "replicate"])
def test_the_border_of_the_file_is_padded_with_in_training_and_in_serving(
    found: Examples, border: str, pads_first: bool
) -> None:
    """By NumPy, of the rows that are the picture. The drawn pictures are 20 x 24: two rows above and below."""
    pad, longest = [{"type": "pad_if_needed", "border": border}], [{"type": "longest_max_size"}]
    chosen = config(
        dataset__image_size=24,
        dataset__pre_transforms=longest + (pad if pads_first else []),
        dataset__post_transforms=[] if pads_first else pad,
        dataset__train_augmentations=[{"type": "horizontal_flip", "p": 1.0}],
    )
    mode = "edge" if border == "replicate" else border
    original = cv2.imread(str(found.train[0].path), cv2.IMREAD_COLOR_RGB)
    padded = np.pad(original, [(2, 2), (0, 0), (0, 0)], mode=mode)  # type: ignore[call-overload]
    assert np.array_equal(Pictures(chosen, found.train, training=True).picture(0, 0)[0], padded[:, ::-1])
    assert np.array_equal(Pictures(chosen, found.train, training=False).picture(0, 0)[0], padded)
    assert np.array_equal(model_spec.read_picture(found.train[0].path, chosen.preprocessing), padded)


def test_batches_do_not_depend_on_workers_or_the_cache(found: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    augmented = {"dataset__train_augmentations": [{"type": "trivialaugment", "p": 1.0}]}
    plain, _ = loaders(config(**augmented), found.train, found.val, 0, gpu=False)
    workers, _ = loaders(
        config(**augmented, dataset__data_loaders__num_workers=2), found.train, found.val, 0, gpu=False
    )
    monkeypatch.setattr(data, "CACHE_BYTES", 0)
    uncached, _ = loaders(config(**augmented), found.train, found.val, 0, gpu=False)
    assert uncached.dataset.cached is None  # type: ignore[attr-defined]
    for one, other, third in zip(plain, workers, uncached, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
        assert torch.equal(one[0], third[0]) and torch.equal(one[1], third[1])


def test_the_schedule_reaches_workers_that_live_for_many_epochs(found: Examples) -> None:
    chosen = config(
        training__epochs=3,
        dataset__train_augmentations=BRIGHTER,
        dataset__augmentation_p_schedule__start_p=0.0,
        dataset__data_loaders__num_workers=1,
    )
    train, _ = loaders(chosen, found.train, found.val, 0, gpu=False)
    assert train.persistent_workers
    brightness = []
    for epoch in range(3):
        train.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        brightness.append(np.mean([batch[0].float().mean() for batch in train]))
    assert brightness[0] < brightness[1] < brightness[2]  # p is 0, 0.5, 1


def test_epochs_have_different_orders_and_each_picture_once() -> None:
    sampler = BatchSampler(10, 3, seed=0)
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert [len(batch) for batch in batches] == [3, 3, 3]
        orders.append([index for batch in batches for _, index in batch])
        assert len(set(orders[-1])) == 9
    assert orders[0] != orders[1]


@pytest.mark.parametrize(
    ("size", "batch", "accumulated", "batches"), [(20, 4, 2, 4), (23, 4, 2, 4), (9, 4, 4, 2), (2, 8, 1, 1)]
)
def test_every_weight_update_has_as_many_batches(size: int, batch: int, accumulated: int, batches: int) -> None:
    assert len(BatchSampler(size, batch, 0, accumulated)) == batches
    assert len(list(BatchSampler(size, batch, 0, accumulated))) == batches


def test_a_background_keeps_the_person_and_replaces_the_rest(tmp_path: Path) -> None:
    from training_jobs.classifier.examples import Person

    picture = np.full((20, 20, 3), 100, np.uint8)
    cv2.imwrite(str(tmp_path / "person.png"), picture)
    (tmp_path / "backgrounds").mkdir()
    cv2.imwrite(str(tmp_path / "backgrounds" / "white.png"), np.full((50, 50, 3), 255, np.uint8))
    left_half = Person((0, 0, 20, 20), ((0.0, 0.0, 0.475, 0.0, 0.475, 1.0, 0.0, 1.0),))
    example = Example(tmp_path / "person.png", 0, person=left_half)
    chosen = config(
        directories__backgrounds=str(tmp_path / "backgrounds"),
        dataset__insert_background_p=1.0,
        dataset__image_size=20,
    )
    shown, _ = Pictures(chosen, [example], training=True).picture(0, 0)
    assert (shown[:, :9] == 100).all() and (shown[:, 11:] == 255).all()
    shown, _ = Pictures(chosen, [example], training=False).picture(0, 0)
    assert (shown[:, :9] == 100).all() and (shown[:, 11:] == 0).all()


@pytest.mark.parametrize("folder", [None, "empty", "missing"])
def test_backgrounds_that_are_not_there_are_refused(folder: str | None, found: Examples, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    chosen = config(directories__backgrounds=str(tmp_path / str(folder)), dataset__insert_background_p=0.5)
    with pytest.raises(ConfigurationError, match=r"directories\.backgrounds"):
        Pictures(chosen, found.train, training=True)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\xff\xd8\xff\xe0 cut off"])
def test_a_file_that_is_no_picture_is_refused_with_its_path(content: bytes, found: Examples, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(content)
    broken = replace(found.train[0], path=tmp_path / "broken.jpg")
    with pytest.raises(DataValidationError, match=r"broken\.jpg"):
        Pictures(config(), [broken], training=True).cache()


@pytest.mark.parametrize("height", [60, 300, 700])
def test_a_quick_decode_is_never_smaller_than_the_input(tmp_path: Path, height: int) -> None:
    from training_jobs.classifier.picture_loading import decode

    how = config(dataset__image_size=32).preprocessing
    path = tmp_path / "page.jpg"
    cv2.imwrite(str(path), np.full((height, 2 * height, 3), 90, np.uint8))
    quick = decode(path, how, quick=True)
    assert max(quick.shape[:2]) >= 32
    assert quick.shape[0] * 2 <= height or height < 64
    assert decode(path, how, quick=False).shape == (height, 2 * height, 3)


def test_a_page_is_turned_by_its_class_and_all_classes_are_drawn(tmp_path: Path) -> None:
    [path, *_] = draw(tmp_path, 1, height=24, width=24)
    upright = Pictures(config(dataset__image_size=24), [Example(path, 0)], False).picture(0, 0)[0]
    drawn = Pictures(config(dataset__image_size=24), [Example(path, 0, turns=None)], True)
    seen = set()
    for epoch in range(2):
        for seed in range(10):
            drawn.seed = seed
            picture, label = drawn.picture(epoch, 0)
            assert np.array_equal(picture, np.rot90(upright, label))
            seen.add(label)
    assert seen == {0, 1, 2, 3}


def test_balanced_sampling_draws_each_class_as_often_and_all_processes_the_same(tmp_path: Path) -> None:
    paths = draw(tmp_path, 12)
    train = [
        Example(path, label, key=path.name) for label, path in zip([0] * 30 + [1] * 4 + [2] * 2, paths, strict=True)
    ]
    shares = balanced_shares(train)
    assert shares is not None
    drawn: Counter[int] = Counter()
    for epoch in range(200):
        whole = BatchSampler(36, 6, 3, shares=shares)
        parts = [BatchSampler(36, 6, 3, part=Part(rank, 2), shares=shares) for rank in range(2)]
        for sampler in (whole, *parts):
            sampler.set_epoch(epoch)
        together = [[*first, *second] for first, second in zip(*parts, strict=True)]
        assert together == list(whole)
        drawn.update(train[index].label for batch in whole for _, index in batch)
    assert all(count == pytest.approx(2400, rel=0.06) for count in drawn.values()) and len(drawn) == 3
    turned = [replace(example, label=0, turns=None) for example in train]
    assert balanced_shares(turned) is None
