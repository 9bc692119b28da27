"""Look into a picture file: is it a picture, how large, and what does it look like from afar."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import warnings
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

SUFFIX = {
    "JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif",
    "AVIF": ".avif", "JPEG2000": ".jp2",
}  # fmt: skip
THUMBNAIL_SIDE = 16  # pixels
_ORIENTATION = 0x0112  # EXIF's tag
# Whole files of formats that people have and Pillow does not open: what they begin with, or hold near the beginning.
_OTHER_FORMATS = {
    "HEIC": re.compile(rb"....ftyp(heic|heix|heim|heis|hevc|mif1|msf1)", re.DOTALL),
    "PDF": re.compile(rb"%PDF-"),
    "SVG": re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg\b", re.DOTALL),
}


class Inspected(BaseModel):
    """What is known of a picture file. Sizes in pixels; 0 where the file is no picture."""

    model_config = ConfigDict(frozen=True)

    source: str
    sha256: str = ""
    suffix: str = ""
    width: int = 0
    height: int = 0
    thumbnail: str = ""
    """16x16 gray values, row by row, in Base64; empty where the picture was not decoded."""
    fault: Literal["corrupt", "unsupported", "missing", ""] = ""
    detail: str = ""

    def thumbnail_array(self) -> NDArray[np.uint8]:
        """Return the thumbnail as uint8 [256]."""
        import numpy as np

        return np.frombuffer(base64.b64decode(self.thumbnail), np.uint8)


def missing(source: str, detail: str) -> Inspected:
    """Return what is known of a file that is not there."""
    return Inspected(source=source, fault="missing", detail=detail)


def inspect(source: str, content: bytes, max_side: int) -> Inspected:
    """Return what is known of a picture file with this content.

    A picture with a side over `max_side` pixels is judged by its header alone: decoding one of 50,000 x 50,000 pixels
    would take 10 GB. Every other one is decoded completely, since a torn file has a good header too.
    """
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # Pillow's own guard refuses to tell the size, which is what the message needs
    digest = hashlib.sha256(content).hexdigest()
    if not content:
        return Inspected(source=source, sha256=digest, fault="corrupt", detail="the file is empty")
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content)) as image:
            warnings.simplefilter("ignore")  # remarks on odd metadata; what matters is that it decodes
            return _looked_into(Inspected(source=source, sha256=digest), image, content, max_side)
    except Exception as error:  # noqa: BLE001 - decoders of damaged files raise anything, from OSError to struct.error
        other = next((name for name, begin in _OTHER_FORMATS.items() if begin.match(content[:4096])), None)
        if other is not None and isinstance(error, UnidentifiedImageError):
            return Inspected(source=source, sha256=digest, fault="unsupported", detail=_not_one_of(other))
        detail = f"it does not decode: {str(error) or type(error).__name__}"
        return Inspected(source=source, sha256=digest, fault="corrupt", detail=detail)


def _looked_into(found: Inspected, image: Image, content: bytes, max_side: int) -> Inspected:
    """Return `found` with what the opened `image` of this `content` says; raise what a decoder of a torn file raises.

    Taken is what OpenCV, which reads pictures for training and for scoring, makes the same of as people see. What is
    whole and is not taken is named, so that no one looks for a damage.
    """
    if image.format not in SUFFIX:
        return found.model_copy(update={"fault": "unsupported", "detail": _not_one_of(str(image.format))})
    if max(image.size) > max_side:
        width, height = image.size
        return found.model_copy(update={"suffix": SUFFIX[image.format], "width": width, "height": height})
    problem, (height, width) = _as_training_reads(image, content)
    thumbnail = _thumbnail(image)  # decodes all of it: OpenCV takes torn files that Pillow does not
    if problem:
        return found.model_copy(update={"fault": "unsupported", "detail": problem})
    known = {"suffix": SUFFIX[image.format], "width": width, "height": height, "thumbnail": thumbnail}
    return found.model_copy(update=known)


def _not_one_of(name: str) -> str:
    return f"the format {name} is not one of {', '.join(SUFFIX)}"


def _as_training_reads(image: Image, content: bytes) -> tuple[str, tuple[int, int]]:
    """Return why OpenCV does not make of the file what people see, or nothing; and the height and width that
    `jobkit.model_spec.prepare` reads, turned as its EXIF orientation says."""
    import cv2
    import numpy as np

    encoded = np.frombuffer(content, np.uint8)
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    form = f"{image.format} ({image.mode})"
    if decoded is None:  # say TIFF with 32 bits a value
        return f"OpenCV, which reads pictures for training, does not decode this {form}", (0, 0)
    problem, frames = "", getattr(image, "n_frames", 1)
    if image.format in ("GIF", "AVIF") and frames > 1:
        problem = f"this {form} moves: it has {frames} frames, and nothing says which of them is the picture"
    elif image.format == "AVIF" and image.getexif().get(_ORIENTATION, 1) != 1:
        problem = f"this {form} is turned by its metadata, which OpenCV does not read there; save it turned"
    elif decoded.max() < 16:
        exact = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
        if exact is not None and exact.dtype == np.uint16 and 0 < int(exact.max()) < 4096:
            problem = (
                f"its values have 16 bits and reach {int(exact.max())} of 65535 (12 bits in 16?), so it would be read "
                "as nearly black; save it with 8 bits, or with values over the whole range"
            )
    return problem, decoded.shape[:2]


def _thumbnail(image: Image) -> str:
    from PIL import ImageOps
    from PIL.Image import Resampling

    upright = ImageOps.exif_transpose(image)
    small = upright.convert("L").resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Resampling.BOX)
    return base64.b64encode(small.tobytes()).decode()
