"""From the bytes of a picture to a model's input, and from its output to probabilities: one code for all who do it.

Training, evaluation, verification and clients come here by `jobkit.model_spec`. The model storage puts this very file
beside the entry that takes pictures in Triton, and publishing into the model that MLflow loads; both have numpy and
OpenCV and none of our packages: so it imports nothing else, and OpenCV where it is used.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHOWN = 0.5  # the probability from which a picture of several labels shows a class
TOP = 5  # classes of an answer
MAX_PIXELS = 200_000_000  # a picture that decodes to more would take a server's memory: 600 MB are enough
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{16}")  # no picture file begins so; JSON can carry one in this form alone
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


class Preparation(Protocol):
    """What is done with a picture; `jobkit.model_spec.Preprocessing` says what each field means."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def resize(self) -> str: ...
    @property
    def pad_value(self) -> int: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


@dataclass(frozen=True)
class WrittenPreparation:
    """A `Preparation` as `model.json` has it. A key that is not here is refused: left out, it would change pixels."""

    height: int
    width: int
    channels: int
    resize: str
    pad_value: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    border: str = "constant"


def served_input(content: bytes, how: Preparation) -> NDArray[np.float32] | str:
    """Return the input [C, H, W] of a picture as clients send it, a file or one in Base64, or why there is none."""
    if _BASE64.match(content):
        try:
            content = base64.b64decode(content, validate=True)
        except ValueError:
            return "it is neither a picture nor one in Base64"
    if not content:
        return "it is empty"
    if is_torn(content):
        return "it is torn: the file ends before its picture does"
    decoded = decode(content, how.channels)
    if decoded is None:
        return f"it is no picture that can be decoded, or has more than {MAX_PIXELS // 1_000_000} million pixels"
    return normalize(fit(decoded, how), how)


def likeliest(found: NDArray[np.float64], multi_label: bool) -> NDArray[np.intp]:
    """Return the classes that an answer names, for probabilities [n, K]: indices [n, k], the likeliest first.

    Where a picture may have several labels, none of those that one of them shows is cut off.
    """
    shown = int((found >= SHOWN).sum(axis=1).max()) if multi_label else 0
    return np.argsort(-found, axis=1, kind="stable")[:, : max(TOP, shown)]


def decode(content: bytes, channels: int) -> NDArray[np.uint8] | None:
    """Return an encoded picture as uint8 [h, w, 3] (RGB) or, with one channel, [h, w]; None where it does not decode.

    It is turned as its EXIF orientation says, 16 bits become 8, transparency is left out.
    """
    import cv2

    flag = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
    try:
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), flag) if content else None
    except cv2.error:  # more pixels than OpenCV is allowed to decode
        return None
    if decoded is not None and channels == 3:
        decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return None if decoded is None else np.asarray(decoded, np.uint8)


def is_torn(content: bytes) -> bool:
    """Whether an encoded JPEG or PNG ends before its picture does; OpenCV fills what is missing with gray.

    Only a reader of the whole file can tell for the other formats, and what they decode to is taken.
    """
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"IEND" not in content
    return content.startswith(b"\xff\xd8") and not _jpeg_ends(content)


def _jpeg_ends(content: bytes) -> bool:
    """Whether the end marker of a JPEG comes after its segments; a thumbnail inside one has an end of its own."""
    place = 2
    while place + 4 <= len(content):
        if content[place] != 0xFF:
            return True  # nothing that this reader understands: what the decoder makes of it counts
        marker = content[place + 1]
        if marker == 0xD9:
            return True
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a segment
            place += 2
        else:
            place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
            if marker == 0xDA:  # coded data; in it 0xFF is followed by 0 or a restart marker
                found = _MARKER.search(content, place)
                place = found.start() if found else len(content)
    return content[place : place + 2] == b"\xff\xd9"


def fit(picture: NDArray[np.uint8], how: Preparation) -> NDArray[np.uint8]:
    """Resize and pad `picture` (uint8 [h, w] or [h, w, C]) to uint8 [H, W, C]."""
    import cv2

    height, width = picture.shape[:2]
    new_height, new_width = resized(height, width, how)
    if (new_height, new_width) != (height, width):
        shrinks = new_height * new_width < height * width
        picture = np.asarray(
            cv2.resize(picture, (new_width, new_height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR),
            np.uint8,
        )
    top, left = (how.height - new_height) // 2, (how.width - new_width) // 2
    if (new_height, new_width) != (how.height, how.width):
        picture = np.asarray(
            cv2.copyMakeBorder(
                picture,
                top,
                how.height - new_height - top,
                left,
                how.width - new_width - left,
                _border(getattr(how, "border", "constant")),  # packages from before there were others name none
                value=(how.pad_value,) * 3,
            ),
            np.uint8,
        )
    return picture[:, :, None] if picture.ndim == 2 else picture


def _border(name: str) -> int:
    import cv2

    borders: dict[str, int] = {
        "constant": cv2.BORDER_CONSTANT,
        "wrap": cv2.BORDER_WRAP,
        "reflect": cv2.BORDER_REFLECT_101,
        "replicate": cv2.BORDER_REPLICATE,
    }
    return borders[name]


def resized(height: int, width: int, how: Preparation) -> tuple[int, int]:
    """Return height and width that a picture of this height and width has before it is padded, pixels."""
    if how.resize == "stretch":
        return how.height, how.width
    scale = min(how.height / height, how.width / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def normalize(picture: NDArray[np.uint8], how: Preparation) -> NDArray[np.float32]:
    """Return uint8 [H, W, C] as float32 [C, H, W]: `(value / 255 - mean) / std`."""
    mean, std = np.asarray(how.mean, np.float32), np.asarray(how.std, np.float32)
    scaled = (picture.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def probabilities(outputs: NDArray[np.float32], kind: str) -> NDArray[np.float64]:
    """Return a model's outputs [N, K] as probabilities, float64: of `kind` "logits" by softmax, others as they are."""
    exact = outputs.astype(np.float64)
    if kind != "logits":
        return exact
    exponents = np.exp(exact - exact.max(1, keepdims=True))
    return np.asarray(exponents / exponents.sum(1, keepdims=True))
