"""Near copies: the same photograph saved again, smaller, or with other compression."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Two pictures are near copies where their 16x16 thumbnails differ in the mean by at most this many gray values of 255.
# Measured on 397 photographs (ants and bees) and the 1,797 digits: JPEG at quality 50, half size, 256 pixels wide with
# quality 75 stay below 1.6; the nearest two different photographs are 12.8 apart, the nearest two digits 3.8.
LIMIT = 2.5
# Thumbnails of low contrast (pages of text, objects on white) are near each other whatever they show, so for them the
# limit is this share of the thumbnail's standard deviation. Measured there: copies up to 0.07, photographs from 0.9.
CONTRAST_SHARE = 0.1
_BLOCK = 4  # pixels; thumbnails are searched by the means of 4x4 blocks
_CHUNK = 256  # queries at a time, so that a crowd of equal pictures does not fill the memory


class NearCopies:
    """The near copies among thumbnails, uint8 [N, 256]; `compared` counts the pairs that were looked at in full.

    Every pair within the limit is found: the mean difference of block means is at most the mean difference of the
    pixels, so a search for near block means misses nothing. A crowd of like pictures is held together by its first
    one, so that its pairs need not be looked at.
    """

    def __init__(self, thumbnails: NDArray[np.uint8]) -> None:
        import numpy as np

        self.compared = 0
        self._gray = thumbnails.astype(np.int16)
        self._limits = np.minimum(LIMIT, CONTRAST_SHARE * thumbnails.std(axis=1)) if len(thumbnails) else np.zeros(0)
        side = round(thumbnails.shape[1] ** 0.5)
        cells = side // _BLOCK
        parts = thumbnails.reshape(len(thumbnails), cells, _BLOCK, cells, _BLOCK)
        self._blocks = parts.mean(axis=(2, 4), dtype=np.float64).reshape(len(thumbnails), cells * cells)

    def near(self, one: int, others: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return which of `others` are near copies of picture `one`: bool [len(others)]."""
        import numpy as np

        return np.asarray(self._apart(one, others) <= np.minimum(self._limits[others], self._limits[one]))

    def of_earlier(self) -> dict[int, int]:
        """Return which pictures are near copies of an earlier one that is none itself: index -> that one's index."""
        import numpy as np

        count = len(self._gray)
        copies: dict[int, int] = {}
        if count < 2:
            return copies
        tree = _tree(self._blocks)
        for start in range(0, count, _CHUNK):
            queries = [i for i in range(start, min(start + _CHUNK, count)) if i not in copies]
            # sorted: each list is in the order of preference
            around = tree.query_ball_point(
                self._blocks[queries], LIMIT * self._blocks.shape[1] + 1e-6, p=1, return_sorted=True
            )
            for index, found in zip(queries, around, strict=True):
                if index in copies:
                    continue
                later = np.array([j for j in found if j > index and j not in copies], int)
                if later.size:
                    copies.update(dict.fromkeys(later[self.near(index, later)].tolist(), index))
        return copies

    def groups(self) -> list[list[int]]:
        """Return the groups of pictures that are near copies of each other, directly or by others in between.

        Each is sorted, and has two pictures or more.
        """
        import numpy as np

        crowds: dict[int, list[int]] = defaultdict(list)
        for copy, first in self.of_earlier().items():
            crowds[first].append(copy)
        joined = Groups(len(self._gray))
        for first, copies in crowds.items():
            joined.join([first, *copies])
        firsts = sorted(set(range(len(self._gray))) - {c for copies in crowds.values() for c in copies})
        tree = _tree(self._blocks[firsts]) if crowds else None
        pairs = sorted(pair for first in crowds for pair in self._neighbors(first, np.array(firsts), tree))
        for _, first, other in pairs:  # the nearest first: they join, and what lies between needs no look
            mine, theirs = np.array([first, *crowds[first]]), np.array([other, *crowds.get(other, [])])
            if not joined.are_one(first, other) and self._touch(mine, theirs):
                joined.join([first, other])
        return [group for group in joined.listed() if len(group) > 1]

    def _neighbors(self, first: int, firsts: NDArray[np.intp], tree: Any) -> list[tuple[float, int, int]]:
        """Return how far apart, `first`, and the other one, for those of `firsts`, which `tree` holds, whose crowds may
        touch its own.

        It is no near copy of them. Their crowds touch where they are at most three limits apart.
        """
        reach = 3 * LIMIT
        others = firsts[tree.query_ball_point(self._blocks[first], reach * self._blocks.shape[1] + 1e-6, p=1)]
        others = others[others != first]
        apart = self._apart(first, others)
        return [(float(d), first, int(o)) for d, o in zip(apart, others, strict=True) if d <= reach]

    def _touch(self, mine: NDArray[np.intp], theirs: NDArray[np.intp]) -> bool:
        """Return whether a picture of one crowd is a near copy of one of the other; a crowd's first one comes first."""
        import numpy as np

        distance = self._apart(int(theirs[0]), mine)
        limit = min(self._limits[mine].max(), self._limits[theirs].max())
        # A near copy of something in a crowd is no further from the crowd's first one than the crowd reaches, and the
        # limit. Those that are likely to touch come first.
        close = distance <= limit + self._apart(int(theirs[0]), theirs).max()
        ordered = mine[close][np.argsort(distance[close], kind="stable")]
        return any(self.near(int(one), theirs).any() for one in ordered)

    def _apart(self, one: int, others: NDArray[np.intp]) -> NDArray[np.float64]:
        import numpy as np

        self.compared += len(others)
        return np.asarray(np.abs(self._gray[others] - self._gray[one]).mean(axis=1), np.float64)


class Groups:
    """Things 0 to `count` - 1 that are joined into groups."""

    def __init__(self, count: int) -> None:
        self._next = list(range(count))

    def join(self, things: Sequence[int]) -> None:
        """Make one group of the groups of these things."""
        first, *others = map(self._first, things)
        for other in others:
            self._next[self._first(other)] = self._first(first)

    def are_one(self, one: int, other: int) -> bool:
        """Return whether two things are in one group."""
        return self._first(one) == self._first(other)

    def listed(self) -> list[list[int]]:
        """Return the groups, each sorted, by their first thing."""
        found: dict[int, list[int]] = defaultdict(list)
        for thing in range(len(self._next)):
            found[self._first(thing)].append(thing)
        return list(found.values())

    def _first(self, thing: int) -> int:
        while self._next[thing] != thing:
            self._next[thing] = self._next[self._next[thing]]
            thing = self._next[thing]
        return thing


def _tree(points: NDArray[np.float64]) -> Any:
    from scipy.spatial import cKDTree  # type: ignore[import-untyped]

    return cKDTree(points)
