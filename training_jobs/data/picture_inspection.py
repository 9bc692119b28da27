"""Look into a picture file: is it a picture, how large, and what does it look like from afar."""

from __future__ import annotations

import base64
import hashlib
import io
import warnings
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

SUFFIX = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}
THUMBNAIL_SIDE = 16  # pixels


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
    fault: Literal["corrupt", "missing", ""] = ""
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
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # Pillow's own guard refuses to tell the size, which is what the message needs
    digest = hashlib.sha256(content).hexdigest()
    if not content:
        return Inspected(source=source, sha256=digest, fault="corrupt", detail="the file is empty")
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content)) as image:
            warnings.simplefilter("ignore")  # remarks on odd metadata; what matters is that it decodes
            if image.format not in SUFFIX:
                detail = f"the format {image.format} is not one of {', '.join(SUFFIX)}"
                return Inspected(source=source, sha256=digest, fault="corrupt", detail=detail)
            width, height = image.size if max(image.size) > max_side else _decoded_size(content)
            if not width:
                detail = (
                    f"OpenCV, which reads pictures for training, does not decode this {image.format} ({image.mode})"
                )
                return Inspected(source=source, sha256=digest, fault="corrupt", detail=detail)
            return Inspected(
                source=source,
                sha256=digest,
                suffix=SUFFIX[image.format],
                width=width,
                height=height,
                thumbnail="" if max(image.size) > max_side else _thumbnail(image),
            )
    except Exception as error:  # noqa: BLE001 - decoders of damaged files raise anything, from OSError to struct.error
        detail = f"it does not decode: {str(error) or type(error).__name__}"
        return Inspected(source=source, sha256=digest, fault="corrupt", detail=detail)


def _decoded_size(content: bytes) -> tuple[int, int]:
    """Return width and height as `jobkit.model_spec.prepare` reads the picture, turned as its EXIF orientation says.

    0 where it cannot: it takes torn files that Pillow does not, and the other way round, say TIFF with 32 bits a value.
    """
    import cv2
    import numpy as np

    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return (0, 0) if decoded is None else (decoded.shape[1], decoded.shape[0])


def _thumbnail(image: Image) -> str:
    from PIL.Image import Resampling

    small = image.convert("L").resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Resampling.BOX)
    return base64.b64encode(small.tobytes()).decode()
