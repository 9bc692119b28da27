"""How far a container's log was read, so that a new connection goes on there."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

# stdout and stderr are stamped apart before they are written to one file: their lines may be slightly out of order.
OVERLAP = timedelta(seconds=1)


class LogPlace:
    """Knows the lines that came already by their timestamps, of which several may be the same.

    Timestamps have nanoseconds and a fixed width, as Docker and Kubernetes write them; a request for the rest starts at
    a whole second, and so repeats lines.
    """

    def __init__(self) -> None:
        self._newest = b""  # of whole seconds
        self._since: datetime | None = None
        self._read: Counter[bytes] = Counter()  # timestamps from `_since` on
        self._repeated: Counter[bytes] = Counter()

    def since(self) -> datetime | None:
        """Return from when on to ask for lines, or None for all; what comes next is the answer."""
        self._repeated = self._read.copy()
        return self._since

    def is_new(self, stamp: bytes) -> bool:
        """Whether the line with this timestamp, the next one of the answer, did not come before."""
        if self._repeated[stamp]:
            self._repeated[stamp] -= 1
            return False
        if (second := stamp[:19]) > self._newest:
            self._newest = second
            self._since = datetime.fromisoformat(stamp.decode()).replace(microsecond=0) - OVERLAP
            oldest = self._since.isoformat().encode()[:19]
            self._read = Counter({read: count for read, count in self._read.items() if read[:19] >= oldest})
        self._read[stamp] += 1
        return True
