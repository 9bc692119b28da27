"""From a file to the picture that augmentation starts with: decoded, cut out, resized."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from jobkit import model_spec
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.model_spec import Preprocessing
from nightshift_common.picture_files import SUFFIXES
from training_jobs.classifier.examples import Example, Person, pictures_below
from training_jobs.classifier.transforms.augmentation import Picture

_REDUCED_GRAY = {
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


def decode(path: Path, how: Preprocessing, quick: bool) -> Picture:
    """Return the picture in its own size, uint8 [h, w] or [h, w, 3].

    `quick` lets the JPEG decoder leave out detail that the model's input size does not show: the result is 1/2, 1/4
    or 1/8 of the size, and never smaller than the input.

    Raises:
        DataValidationError: the file is not a picture that can be decoded.
    """
    content = path.read_bytes()
    gray = how.channels == 1
    flag = cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR_RGB
    if quick and (factor := _reduction(content, how)) > 1:
        flag = _REDUCED_GRAY[factor] | (0 if gray else cv2.IMREAD_COLOR_RGB)
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), flag) if content else None
    if picture is None:
        raise DataValidationError(f"{path} is not a picture that can be decoded")
    return picture  # type: ignore[return-value]


def _reduction(content: bytes, how: Preprocessing) -> int:
    if content[:2] != b"\xff\xd8":
        return 1  # only the JPEG decoder gains by it
    try:
        width, height = Image.open(io.BytesIO(content)).size
    except (UnidentifiedImageError, OSError):
        return 1
    shrink = max(width / how.width, height / how.height) if how.resize == "letterbox" else 1.0
    if how.resize == "stretch":
        shrink = min(width / how.width, height / how.height)
    return max(factor for factor in (1, 2, 4, 8) if factor <= max(shrink, 1))


def load(example: Example, how: Preprocessing, quick: bool) -> tuple[Picture, Picture | None]:
    """Return an example's picture and, for a person, the mask, resized for the model but not padded.

    Returns:
        uint8 [h, w, C], h and w at most the input's; uint8 [h, w], 255 where the person is, or None.
    """
    if example.person is None:
        return unpadded(decode(example.path, how, quick), how), None
    picture, mask = cut_out(decode(example.path, how, quick=False), example.person, example.path)
    return unpadded(picture, how), unpadded(mask, how)[:, :, 0]


def cut_out(picture: Picture, person: Person, path: Path) -> tuple[Picture, Picture]:
    """Return the part of `picture` inside the person's box, and the mask in it: uint8 [h, w], 0 or 255.

    A person without polygons is the whole box.
    """
    height, width = picture.shape[:2]
    x_min, y_min, x_max, y_max = person.box
    left, right = max(0, int(x_min)), min(width, int(np.ceil(x_max)))
    top, bottom = max(0, int(y_min)), min(height, int(np.ceil(y_max)))
    if left >= right or top >= bottom:
        raise DataValidationError(
            f"{path}: the box of a person, {person.box}, lies outside the picture of {width}x{height} pixels"
        )
    mask = np.zeros((height, width), np.uint8)
    scale = np.array([width, height], np.float64)
    outlines = [np.rint(np.reshape(polygon, (-1, 2)) * scale).astype(np.int32) for polygon in person.polygons]
    if outlines:
        cv2.fillPoly(mask, outlines, 255)
    else:
        mask[top:bottom, left:right] = 255
    return picture[top:bottom, left:right], mask[top:bottom, left:right]


def unpadded(picture: Picture, how: Preprocessing) -> Picture:
    """Return `picture` resized as the model needs it, without its padding: uint8 [h, w, C].

    The same pixels as in the middle of what `jobkit.model_spec.fit` returns.
    """
    height, width = model_spec.resized(picture.shape[0], picture.shape[1], how)
    exact = how.model_copy(update={"height": height, "width": width, "resize": "stretch"})
    return model_spec.fit(picture, exact)


def without_background(picture: Picture, mask: Picture, pad_value: int) -> Picture:
    """Return `picture` [h, w, C] with everything outside `mask` [h, w] set to `pad_value`."""
    return np.where(mask[:, :, None] > 127, picture, np.uint8(pad_value))


class Backgrounds:
    """Pictures of a folder, to paste others on.

    Raises:
        ConfigurationError: the folder is missing or holds no pictures.
    """

    def __init__(self, folder: str | None, how: Preprocessing, max_side: int) -> None:
        if folder is None:
            raise ConfigurationError("dataset.insert_background_p is above 0, but directories.backgrounds is not set")
        self.paths = pictures_below(Path(folder), max_side) if Path(folder).is_dir() else []
        if not self.paths:
            raise ConfigurationError(
                f"directories.backgrounds: {folder} holds no pictures ({', '.join(sorted(SUFFIXES))}), "
                "and dataset.insert_background_p is above 0"
            )
        self.how = how.model_copy(update={"resize": "letterbox"})

    def paste(self, picture: Picture, mask: Picture | None, ratio: float, rng: np.random.Generator) -> Picture:
        """Return `picture` at a random place on a part of a random background that is `ratio` times as large.

        The result has the size of `picture`, so that the picture itself gets smaller by `ratio`.
        """
        height, width = picture.shape[:2]
        small_height, small_width = max(1, round(height / ratio)), max(1, round(width / ratio))
        background = self._crop(self.paths[rng.integers(len(self.paths))], height, width, rng)
        small = _resized(picture, small_height, small_width)
        top, left = int(rng.integers(height - small_height + 1)), int(rng.integers(width - small_width + 1))
        place = background[top : top + small_height, left : left + small_width]
        if mask is not None:
            small = np.where(_resized(mask, small_height, small_width) > 127, small, place)
        background[top : top + small_height, left : left + small_width] = small
        return background

    def _crop(self, path: Path, height: int, width: int, rng: np.random.Generator) -> Picture:
        """Return a random part of the background with the proportions of the picture, as a new array."""
        whole = _decoded_background(path, self.how)
        scale = min(whole.shape[0] / height, whole.shape[1] / width)
        cut_height, cut_width = max(1, int(height * scale)), max(1, int(width * scale))
        top = int(rng.integers(whole.shape[0] - cut_height + 1))
        left = int(rng.integers(whole.shape[1] - cut_width + 1))
        return _resized(whole[top : top + cut_height, left : left + cut_width], height, width).copy()


@lru_cache(maxsize=128)
def _decoded_background(path: Path, how: Preprocessing) -> Picture:
    return unpadded(decode(path, how, quick=True), how)


def _resized(picture: Picture, height: int, width: int) -> Picture:
    if picture.shape[:2] == (height, width):
        changed: NDArray[np.uint8] = picture
    else:
        smaller = height * width < picture.shape[0] * picture.shape[1]
        changed = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)  # type: ignore[assignment]
    return changed if changed.ndim == 3 else changed[:, :, None]
