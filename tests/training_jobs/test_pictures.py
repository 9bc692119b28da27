"""Looking into picture files: what training can read is taken, everything else is refused with a reason."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobkit.model_spec import Preprocessing, prepare, read_picture
from tests.training_jobs.pictures import bomb, picture
from training_jobs.data.picture_inspection import inspect

COLORS = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
GRAY = np.asarray(COLORS)[..., 0]


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def orientation(turn: int) -> bytes:
    """EXIF data with this orientation."""
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif.tobytes()


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
    "gif": (saved(COLORS, "GIF"), ".gif"),
    "avif": (saved(COLORS, "AVIF"), ".avif"),
    "jpeg 2000": (saved(COLORS, "JPEG2000"), ".jp2"),
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
        (bomb(900), "does not decode"),
    ],
)
def test_what_training_could_not_read_is_corrupt(content: bytes, detail: str) -> None:
    found = inspect("x", content, 1000)
    assert found.fault == "corrupt"
    assert re.search(detail, found.detail), found.detail


def avif_of_12_bits() -> bytes:
    import cv2

    return cv2.imencode(".avif", np.asarray(COLORS).astype(np.uint16) * 16, [cv2.IMWRITE_AVIF_DEPTH, 12])[1].tobytes()


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (saved(Image.fromarray(GRAY.astype(np.float32)), "TIFF"), r"does not decode this TIFF \(F\)"),
        (saved(COLORS, "ICO"), "the format ICO is not one of JPEG"),
        (b"\0\0\0\x18ftypheic" + bytes(500), "the format HEIC is not one of JPEG"),
        (b"%PDF-1.7\n" + bytes(500), "the format PDF is not one of JPEG"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "the format SVG is not one of JPEG"),
        (saved(COLORS, "GIF", save_all=True, append_images=[COLORS.rotate(180)]), "moves: it has 2 frames"),
        (saved(COLORS, "AVIF", exif=orientation(6)), "turned by its metadata"),
        (saved(Image.fromarray(GRAY.astype(np.uint16) * 16), "PNG"), r"reach 4064 of 65535 \(12 bits in 16"),
        (saved(Image.fromarray(GRAY.astype(np.uint16) * 16), "TIFF"), "nearly black"),
    ],
)
def test_what_is_whole_and_would_be_read_otherwise_than_seen_is_named(content: bytes, detail: str) -> None:
    found = inspect("x", content, 1000)
    assert found.fault == "unsupported"
    assert re.search(detail, found.detail), found.detail


@pytest.mark.parametrize("name", ["gif", "avif", "jpeg 2000", "colors", "webp", "tiff"])
def test_another_decoder_sees_the_same_picture(name: str, tmp_path: Path) -> None:
    content, _ = GOOD[name]
    (tmp_path / "picture").write_bytes(content)
    ours = read_picture(tmp_path / "picture", Preprocessing(height=48, width=64))
    with Image.open(io.BytesIO(content)) as image:
        theirs = np.asarray(image.convert("RGB"))
    assert np.abs(ours.astype(int) - theirs).mean() < 1


def test_a_dark_picture_and_one_of_12_bits_that_says_so_are_taken() -> None:
    assert inspect("x", saved(Image.new("L", (20, 20), 3), "PNG"), 1000).fault == ""
    assert inspect("x", saved(Image.fromarray(np.zeros((20, 20), np.uint16)), "PNG"), 1000).fault == ""
    assert inspect("x", avif_of_12_bits(), 1000).fault == ""


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_turned_picture_is_known_as_it_is_decoded(form: str, turn: int) -> None:
    import cv2

    exif = {"tiffinfo": {0x0112: turn}} if form == "TIFF" else {"exif": orientation(turn)}
    content = saved(Image.open(io.BytesIO(picture(3, 64))).resize((96, 64)), form, **exif)
    found = inspect("x", content, 1000)
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert (found.height, found.width) == decoded.shape[:2] == ((96, 64) if turn > 4 else (64, 96))
    gray = cv2.resize(cv2.cvtColor(decoded, cv2.COLOR_BGR2GRAY), (16, 16), interpolation=cv2.INTER_AREA)
    assert np.abs(found.thumbnail_array().reshape(16, 16).astype(int) - gray).mean() < 1.5


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.98])
def test_a_torn_file_is_corrupt_wherever_it_is_torn(form: str, part: float) -> None:
    whole = picture(3, 200, form)
    assert inspect("x", whole, 1000).fault == ""
    assert inspect("x", whole[: int(len(whole) * part)], 1000).fault == "corrupt"


def test_a_bomb_is_measured_and_not_decoded() -> None:
    found = inspect("x", bomb(50_000), 10_000)
    assert (found.fault, found.width, found.height, found.thumbnail) == ("", 50_000, 50_000, "")
