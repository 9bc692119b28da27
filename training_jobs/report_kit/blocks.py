"""What a report's sections hold. Texts are plain: `page` escapes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

Tone = Literal["plain", "good", "bad"]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar = "text"
    text: str


@dataclass(frozen=True)
class Listing:
    """A list of short texts."""

    kind: ClassVar = "listing"
    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of texts; the first column names the row."""

    kind: ClassVar = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    @classmethod
    def of_pairs(cls, values: Mapping[str, Any]) -> Table:
        """Return a table of names and values, without a header; a value may have names and values itself."""

        def shown(value: Any) -> str:
            if isinstance(value, Mapping):
                return ", ".join(f"{name} {part}" for name, part in value.items())
            return "none" if value is None else str(value)

        return cls((), [(name, shown(value)) for name, value in values.items()])


@dataclass(frozen=True)
class Box:
    """A box on a picture, in pixels of the picture as it was, and what is said of it."""

    tone: Tone
    x: float
    y: float
    width: float
    height: float
    says: str


@dataclass(frozen=True)
class Picture:
    """A thumbnail with a caption; `size`, (width, height) in pixels, is that which its boxes are in."""

    source: str  # data:image/...
    caption: str
    detail: str
    size: tuple[int, int] = (0, 0)
    boxes: Sequence[Box] = ()


@dataclass(frozen=True)
class Pictures:
    """Thumbnails side by side."""

    kind: ClassVar = "pictures"
    pictures: Sequence[Picture]
    large: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart as Plotly takes it (`data`, `layout`), and its numbers as a table for those who do not see it."""

    kind: ClassVar = "chart"
    title: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    numbers: Table
    note: str = ""
    widest: int = 0  # pixels; 0: as wide as the page


Block = Text | Listing | Table | Pictures | Chart


@dataclass(frozen=True)
class Section:
    """A part of a report."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
