"""Looking into picture files: what training can read is taken, everything else is refused with a reason."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobkit.model_spec import Preprocessing, prepare
from tests.training_jobs.pictures import bomb, picture
from training_jobs.data.picture_inspection import inspect

COLORS = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
GRAY = np.asarray(COLORS)[..., 0]


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


GOOD = {
    "colors": (saved(COLORS, "JPEG"), ".jpg"),
    "progressive": (saved(COLORS, "JPEG", progressive=True), ".jpg"),
    "print colors": (saved(COLORS.convert("CMYK"), "JPEG"), ".jpg"),
    "palette": (saved(COLORS.convert("P"), "PNG"), ".png"),
    "transparent": (saved(COLORS.convert("RGBA"), "PNG"), ".png"),
    "one bit": (saved(COLORS.convert("1"), "PNG"), ".png"),
    "16 bits": (saved(Image.fromarray(GRAY.astype(np.uint16) * 256), "PNG"), ".png"),
    "webp": (saved(COLORS, "WEBP"), ".webp"),
    "bmp": (saved(COLORS, "BMP"), ".bmp"),
    "tiff": (saved(COLORS, "TIFF", compression="tiff_lzw"), ".tif"),
    "fax": (saved(COLORS.convert("1"), "TIFF", compression="group4"), ".tif"),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_taken_can_be_prepared_for_a_model(name: str, tmp_path: Path) -> None:
    content, suffix = GOOD[name]
    found = inspect(name, content, 1000)
    assert (found.fault, found.width, found.height, found.suffix) == ("", 64, 48, suffix)
    assert found.thumbnail_array().shape == (256,)
    (tmp_path / "picture").write_bytes(content)
    assert prepare(tmp_path / "picture", Preprocessing(height=32, width=32)).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"", "the file is empty"),
        (b"\0" * 5000, "does not decode"),
        (b"<html></html>", "does not decode"),
        (saved(COLORS, "GIF"), "the format GIF is not one of JPEG"),
        (saved(Image.fromarray(GRAY.astype(np.float32)), "TIFF"), r"does not decode this TIFF \(F\)"),
        (bomb(900), "does not decode"),
    ],
)
def test_what_training_could_not_read_is_corrupt(content: bytes, detail: str) -> None:
    found = inspect("x", content, 1000)
    assert found.fault == "corrupt"
    assert re.search(detail, found.detail), found.detail


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.98])
def test_a_torn_file_is_corrupt_wherever_it_is_torn(form: str, part: float) -> None:
    whole = picture(3, 200, form)
    assert inspect("x", whole, 1000).fault == ""
    assert inspect("x", whole[: int(len(whole) * part)], 1000).fault == "corrupt"


def test_a_bomb_is_measured_and_not_decoded() -> None:
    found = inspect("x", bomb(50_000), 10_000)
    assert (found.fault, found.width, found.height, found.thumbnail) == ("", 50_000, 50_000, "")
