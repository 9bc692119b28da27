"""Near copies: found exactly, and real photographs and digits are not taken for each other."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from services.collect.load_digits import digits
from tests.support.sample_data import HYMENOPTERA, MISSING
from training_jobs.data.near_duplicates import CONTRAST_SHARE, LIMIT, NearCopies
from training_jobs.data.picture_inspection import inspect

PHOTOGRAPHS = HYMENOPTERA / "pictures"


def near_copies(thumbnails: NDArray[np.uint8]) -> dict[int, int]:
    return NearCopies(thumbnails).of_earlier()


def groups_by_every_pair(thumbnails: NDArray[np.uint8]) -> list[list[int]]:
    """The groups of near copies, by comparing every two pictures and walking from one to the next."""
    limits = np.minimum(LIMIT, CONTRAST_SHARE * thumbnails.std(axis=1))
    apart = np.abs(thumbnails[:, None].astype(int) - thumbnails[None].astype(int)).mean(axis=2)
    near = apart <= np.minimum(limits[:, None], limits[None])
    groups, seen = [], set()
    for start in range(len(thumbnails)):
        group, left = set(), [start]
        while left:
            one = left.pop()
            if one not in seen | group:
                group.add(one)
                left += np.flatnonzero(near[one]).tolist()
        seen |= group
        if len(group) > 1:
            groups.append(sorted(group))
    return groups


def thumbnail(content: bytes) -> NDArray[np.uint8]:
    return inspect("x", content, 10_000).thumbnail_array()


def saved(image: Image.Image, form: str = "JPEG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def by_every_pair(thumbnails: NDArray[np.uint8]) -> dict[int, int]:
    """The same, by comparing every picture with every kept one."""
    limits = np.minimum(LIMIT, CONTRAST_SHARE * thumbnails.std(axis=1))
    kept: list[int] = []
    copies = {}
    for index, each in enumerate(thumbnails):
        apart = np.abs(thumbnails[kept].astype(int) - each.astype(int)).mean(axis=1) if kept else np.array([])
        near = [k for k, d in zip(kept, apart, strict=True) if d <= min(limits[k], limits[index])]
        if near:
            copies[index] = near[0]
        else:
            kept.append(index)
    return copies


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), centers=st.integers(1, 8), spread=st.integers(0, 8), contrast=st.integers(0, 80))
def test_every_pair_within_the_limit_is_found(seed: int, centers: int, spread: int, contrast: int) -> None:
    random = np.random.default_rng(seed)
    middle = 128 + random.integers(-contrast, contrast + 1, (centers, 256))
    noise = random.integers(-spread, spread + 1, (60, 256)) + random.integers(-3, 4, (60, 1))  # and a shade lighter
    thumbnails = (middle[random.integers(0, centers, 60)] + noise).clip(0, 255).astype(np.uint8)
    assert near_copies(thumbnails) == by_every_pair(thumbnails)
    assert NearCopies(thumbnails).groups() == groups_by_every_pair(thumbnails)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), step=st.floats(0, 3), spread=st.integers(0, 3), cameras=st.integers(1, 4))
def test_what_drifts_from_picture_to_picture_is_one_group(seed: int, step: float, spread: int, cameras: int) -> None:
    random = np.random.default_rng(seed)
    scenes = random.integers(60, 190, (cameras, 256))
    light = step * np.arange(60)[:, None] / 4 + random.integers(-spread, spread + 1, (60, 256))
    thumbnails = (scenes[random.integers(0, cameras, 60)] + light).clip(0, 255).astype(np.uint8)
    shuffled = thumbnails[random.permutation(60)]
    assert NearCopies(shuffled).groups() == groups_by_every_pair(shuffled)


def test_no_pictures_have_no_copies() -> None:
    assert near_copies(np.zeros((0, 256), np.uint8)) == {}
    assert near_copies(np.zeros((1, 256), np.uint8)) == {}


def test_no_two_of_the_digits_are_near_copies() -> None:
    assert near_copies(np.stack([thumbnail(item.content) for item in digits()])) == {}


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason=MISSING)
def test_photographs_saved_again_are_found_and_different_ones_are_not() -> None:
    originals, copies = [], []
    for path in sorted(PHOTOGRAPHS.iterdir())[::6]:
        with Image.open(path) as image:
            whole = image.convert("RGB")
        originals.append(thumbnail(path.read_bytes()))
        half = whole.resize((whole.width // 2, whole.height // 2), Image.Resampling.LANCZOS)
        copies += [thumbnail(saved(whole, quality=50)), thumbnail(saved(half)), thumbnail(saved(half, "PNG"))]
    count = len(originals)
    assert count > 60
    assert near_copies(np.stack(originals)) == {}
    found = near_copies(np.stack(originals + copies))
    assert found == {count + n: n // 3 for n in range(3 * count)}


def test_pages_of_text_are_not_taken_for_each_other() -> None:
    random = np.random.default_rng(1)
    pages = []
    for _ in range(50):
        page = np.full((600, 420), 250, np.uint8)
        for top in range(40, 560, 12):
            page[top : top + 6, 30 : random.integers(200, 390)] = random.integers(40, 120)
        pages.append(thumbnail(saved(Image.fromarray(page), "PNG")))
    assert near_copies(np.stack(pages)) == {}


@pytest.mark.timeout(120)  # seconds are enough; every pair would take many minutes
def test_a_large_set_with_a_crowd_of_equal_pictures_is_searched_in_reasonable_time() -> None:
    random = np.random.default_rng(2)
    coarse = random.integers(0, 256, (45_000, 4, 4))
    thumbnails = np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2).reshape(-1, 256).astype(np.uint8)
    black = np.tile(np.concatenate([np.full(128, 3), np.full(128, 9)]).astype(np.uint8), (5_000, 1))
    assert len(near_copies(np.concatenate([thumbnails, black]))) == 4_999


def crowd(count: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Pictures of one fixed camera."""
    return (random.integers(60, 190, 256) + random.integers(-1, 2, (count, 256))).astype(np.uint8)


def drift(count: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """A scene that gets lighter, so that its first and last picture are no near copies."""
    light = np.linspace(0, 60, count)[:, None]
    return (random.integers(60, 190, 256) + light + random.integers(0, 2, (count, 256))).astype(np.uint8)


def unlike(count: int, random: np.random.Generator) -> NDArray[np.uint8]:
    coarse = random.integers(0, 256, (count, 4, 4))
    return np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2).reshape(-1, 256).astype(np.uint8)


@pytest.mark.parametrize(("make", "groups"), [(crowd, 1), (drift, 1), (unlike, 0)])
def test_the_search_looks_at_few_pairs_whatever_the_pictures(
    make: Callable[[int, np.random.Generator], NDArray[np.uint8]], groups: int
) -> None:
    looked_at = []
    for count in (2_000, 4_000):
        search = NearCopies(make(count, np.random.default_rng(3)))
        assert len(search.groups()) == groups
        looked_at.append(search.compared)
    assert looked_at[1] <= 2.5 * looked_at[0]  # every pair: 4 times
    assert looked_at[1] < 100 * 4_000  # every pair: 8 million
