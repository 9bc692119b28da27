"""Reading on in a log: no line is lost and none comes twice, whatever the timestamps are like."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from nightshift.launchers.log_place import LogPlace


def stamp(second: int, nanosecond: int) -> bytes:
    return f"2026-11-21T04:00:{second:02d}.{nanosecond:09d}Z".encode()


# In the order of the file: two streams are stamped apart, so that stamps repeat and go back a little.
LOG = [
    stamp(1, 5), stamp(1, 5), stamp(1, 9), stamp(1, 7), stamp(1, 5), stamp(2, 0), stamp(1, 999_999_999), stamp(2, 0),
    stamp(9, 1), stamp(8, 999_999_999), stamp(9, 1),
]  # fmt: skip


@pytest.mark.parametrize("cut", range(len(LOG) + 1))
@pytest.mark.parametrize("again", range(len(LOG) + 1))
def test_each_line_comes_once_wherever_the_connection_drops(cut: int, again: int) -> None:
    place, came = LogPlace(), []
    for end in (cut, again, len(LOG)):
        since = place.since()
        for number, at in enumerate(LOG[:end]):
            asked = since is None or datetime.fromisoformat(at.decode()) >= since
            if asked and place.is_new(at):
                came.append(number)
    assert came == list(range(len(LOG)))


def test_only_a_little_is_asked_for_again() -> None:
    place = LogPlace()
    assert place.since() is None
    for at in LOG:
        assert place.is_new(at)
    assert place.since() == datetime(2026, 11, 21, 4, 0, 8, tzinfo=UTC)
