"""Near copies: the same photograph saved again, smaller, or with other compression."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def near_copies(thumbnails: NDArray[np.uint8]) -> dict[int, int]:
    """Return which pictures are near copies of an earlier one that is none itself: index -> that picture's index.

    Every pair within the limit is found: the mean difference of block means is at most the mean difference of the
    pixels, so a search for near block means misses nothing.

    Args:
        thumbnails: uint8 [N, 256], the pictures to keep first come first.
    """
    import numpy as np
    from scipy.spatial import cKDTree  # type: ignore[import-untyped]

    count, pixels = thumbnails.shape
    if count < 2:
        return {}
    side = round(pixels**0.5)
    cells = side // _BLOCK
    blocks = (
        thumbnails.reshape(count, cells, _BLOCK, cells, _BLOCK).mean(axis=(2, 4), dtype=np.float64).reshape(count, -1)
    )
    limits = np.minimum(LIMIT, CONTRAST_SHARE * thumbnails.std(axis=1))
    tree = cKDTree(blocks)
    copies: dict[int, int] = {}
    for start in range(0, count, _CHUNK):
        queries = [i for i in range(start, min(start + _CHUNK, count)) if i not in copies]
        # sorted: each list is in the order of preference
        around = tree.query_ball_point(blocks[queries], LIMIT * blocks.shape[1] + 1e-6, p=1, return_sorted=True)
        for index, found in zip(queries, around, strict=True):
            if index in copies:
                continue
            later = np.array([j for j in found if j > index and j not in copies], int)
            if later.size:
                apart = np.abs(thumbnails[later].astype(np.int16) - thumbnails[index].astype(np.int16)).mean(axis=1)
                for j in later[apart <= np.minimum(limits[later], limits[index])]:
                    copies[int(j)] = index
    return copies
