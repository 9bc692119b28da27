"""Combinations in which any two values of any two factors meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations

Pair = tuple[tuple[str, str], tuple[str, str]]


def pairwise(factors: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Return rows, one value of each factor, such that every pair of values of two factors stands in one of them.

    Greedy: a row starts with a pair that is still open, and each other factor takes the value that closes most.
    """
    # A dict, so that the order, and with it the rows, are the same each time.
    still_open: dict[Pair, None] = {
        ((a, x), (b, y)): None for a, b in combinations(factors, 2) for x in factors[a] for y in factors[b]
    }
    rows = []
    while still_open:
        row = dict(next(iter(still_open)))
        for name in [name for name in factors if name not in row]:
            row[name] = max(factors[name], key=partial(_closed, still_open, row, name))
        row = {name: row[name] for name in factors}
        for pair in combinations(row.items(), 2):
            still_open.pop(pair, None)
        rows.append(row)
    return rows


def _closed(still_open: Mapping[Pair, None], row: Mapping[str, str], name: str, value: str) -> int:
    """Return how many open pairs `value` of `name` would close in `row`."""
    mine = (name, value)
    return sum((mine, other) in still_open or (other, mine) in still_open for other in row.items())
