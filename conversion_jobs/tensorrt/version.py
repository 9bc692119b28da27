"""TensorRT's versions: a plan loads only into exactly the build that made it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from jobkit.errors import ConfigurationError

TEST_DOUBLE = "test double of trtexec"
"""What stands in the log of a program that only pretends to be trtexec, as tests have one. It makes no plans."""

OLDEST = (8, 6)
MAJORS = (8, 10, 11)
_BANNER = re.compile(r"\[TensorRT v(\d{4,6})\](?: \[b(\d+)\])?")


@dataclass(frozen=True)
class TensorRTVersion:
    """`major.minor.patch.build`; the build is None where trtexec does not say it (8.x)."""

    major: int
    minor: int
    patch: int
    build: int | None = None

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}" + ("" if self.build is None else f".{self.build}")

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor, for comparisons."""
        return self.major, self.minor

    def loads_plans_of(self, other: TensorRTVersion) -> bool:
        """Whether a plan of `other` loads: the same in all that both say."""
        same = (self.major, self.minor, self.patch) == (other.major, other.minor, other.patch)
        return same and (None in (self.build, other.build) or self.build == other.build)

    def loads_compatible_plans_of(self, other: TensorRTVersion) -> bool:
        """Whether a version-compatible plan of `other` loads: from 8.6 on in the same or a later version.

        NVIDIA documents it up to the next major version that there is (8 to 10, 10 to 11), and never backwards.
        """
        later = (self.major, self.minor, self.patch) >= (other.major, other.minor, other.patch)
        return other.release >= OLDEST and later and MAJORS.index(self.major) - MAJORS.index(other.major) <= 1


def parse_version(text: str) -> TensorRTVersion:
    """Return the version in `text`: `11.1.0.106` or `11.1.0`.

    Raises:
        ConfigurationError: it is none.
    """
    parts = text.strip().split(".")
    if len(parts) not in (3, 4) or not all(part.isdecimal() for part in parts):
        raise ConfigurationError(f"{text!r} is no version of TensorRT: major.minor.patch.build, say 11.1.0.106")
    return TensorRTVersion(*(int(part) for part in parts))


def find_version(text: str) -> TensorRTVersion | None:
    """Return the version in a banner of trtexec; None where there is no banner.

    `[TensorRT v8601]` is 8.6.1; from 10 on `[TensorRT v101300] [b35]` is 10.13.0.35.
    """
    found = _BANNER.search(text)
    if found is None:
        return None
    number, build = int(found[1]), found[2]
    if number < 10_000:
        return TensorRTVersion(number // 1000, number // 100 % 10, number % 100, int(build) if build else None)
    return TensorRTVersion(number // 10_000, number // 100 % 100, number % 100, int(build) if build else None)
