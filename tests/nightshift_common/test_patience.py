"""Time limits on a machine that is busy."""

import os

import pytest

from nightshift_common.patience import patience


@pytest.mark.parametrize(("load", "limit"), [(0.0, 20), (2.0, 20), (8.0, 80), (20.0, 200), (500.0, 200)])
def test_a_limit_grows_with_the_load_per_core_and_never_shrinks(
    load: float, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert patience(20) == limit
