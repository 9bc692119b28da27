"""How long to wait on a machine that others use, too."""

import os

LARGEST_FACTOR = 10.0  # beyond that it is not the load


def patience(seconds: float) -> float:
    """Return a time limit as it is here and now, seconds.

    Args:
        seconds: the limit where every process that wants a core has one.

    Returns:
        `seconds`, times the load of the last minute per core where that is more than 1, and ten times at most.
    """
    return seconds * min(max(os.getloadavg()[0] / len(os.sched_getaffinity(0)), 1.0), LARGEST_FACTOR)
