"""Pictures for people: thumbnails, and many in one."""

from __future__ import annotations

from base64 import b64encode

import cv2
import numpy as np
from numpy.typing import NDArray


def sheet(pictures: NDArray[np.uint8], side: int = 128) -> bytes:
    """Return uint8 [N, H, W, C] (C: 1 gray, 3 RGB) as one JPEG, side by side, each at most `side` pixels wide."""
    columns = int(np.ceil(np.sqrt(len(pictures))))
    tiles = [thumbnail(picture, side) for picture in pictures]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    return jpeg(np.vstack(rows))


def thumbnail(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return a picture, uint8 [H, W, C], as RGB [h, w, 3] with the longer side at most `side` pixels."""
    color = np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture
    height, width = color.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(color, size, interpolation=cv2.INTER_AREA), np.uint8)


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    """Return an RGB picture, uint8 [H, W, 3], as JPEG."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return encoded.tobytes()


def shown(picture: NDArray[np.uint8], side: int) -> str:
    """Return a thumbnail of a picture, uint8 [H, W, C], as the source of an `img` element."""
    return f"data:image/jpeg;base64,{b64encode(jpeg(thumbnail(picture, side))).decode()}"
