"""Log lines and progress: each line complete in itself, the estimate right."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from jobkit import log
from jobkit.progress import EpochLog, Progress, duration, track

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def stream():
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    buffer = io.StringIO()
    log.configure(buffer)
    yield buffer
    root.handlers[:] = before
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_line_of_json_with_its_fields(stream: io.StringIO) -> None:
    logging.getLogger("x").warning("two\nlines %d ж", 7, extra={"event": "example", "odd": {1}})
    (line,) = lines(stream)
    assert line["message"] == "two\nlines 7 ж"
    assert (line["level"], line["logger"], line["event"]) == ("warning", "x", "example")
    assert str(line["time"]).endswith("+00:00")


def test_an_exception_stays_on_its_line(stream: io.StringIO) -> None:
    try:
        raise ValueError("inner")
    except ValueError:
        logging.getLogger("x").exception("outer")
    (line,) = lines(stream)
    assert "ValueError: inner" in str(line["exception"])


def test_warnings_of_libraries_are_log_lines_too() -> None:
    code = "import warnings; from jobkit import log; log.configure(); warnings.warn('old', UserWarning)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "old" in json.loads(done.stdout)["message"]


def test_progress_estimates_by_the_mean_speed_so_far(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("jobkit.progress.time.monotonic", lambda: now)
    progress = Progress("train", 10, "epochs", interval=2.0, initial=4)
    for second in (101.0, 103.0, 104.0):
        now = second
        progress.advance(loss=0.5)
    (line,) = lines(stream)
    # two of the six epochs of this attempt after 3 s: the other four take 6 s
    assert (line["done"], line["total"], line["eta_seconds"]) == (6, 10, 6.0)
    assert (line["event"], line["progress_loss"]) == ("progress", 0.5)
    assert "6/10 epochs" in str(line["message"])


def test_progress_always_says_that_it_is_done(stream: io.StringIO) -> None:
    assert list(track(range(3), "count", 3)) == [0, 1, 2]
    assert [line["done"] for line in lines(stream)] == [3]
    assert "\r" not in stream.getvalue()


def test_progress_is_rare_and_what_it_shows_is_asked_for_only_then(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, asked = 0.0, []

    def loss() -> str:
        asked.append(now)
        return f"{1 / now:.2f}"

    monkeypatch.setattr("jobkit.progress.time.monotonic", lambda: now)
    progress = Progress("train", 1000, "batches")
    for second in range(1, 100):
        now = float(second)
        progress.advance(loss=loss)
    assert asked == [30.0, 60.0, 90.0]
    assert [line["progress_loss"] for line in lines(stream)] == ["0.03", "0.02", "0.01"]


def test_an_epoch_is_a_line_with_its_loss_its_score_the_best_and_the_time_left(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("jobkit.progress.time.monotonic", lambda: now)
    log = EpochLog(4, "validation accuracy", done=1)  # an earlier attempt did the first
    for epoch, loss, value, best, best_epoch in ((2, 0.41, 0.915, 0.915, 2), (3, 0.4, 0.912, 0.915, 2)):
        now += 17.0
        log.ended(epoch, loss, value, best, best_epoch)
    now += 17.0
    log.ended(4, 0.2, 0.93, 0.93, 4)
    assert [line["message"] for line in lines(stream)] == [
        "epoch 2 of 4: loss 0.41, validation accuracy 0.9150 (the best so far), 34 s left",
        "epoch 3 of 4: loss 0.4, validation accuracy 0.9120 (best 0.9150 at epoch 2), 17 s left",
        "epoch 4 of 4: loss 0.2, validation accuracy 0.9300 (the best so far), took 51 s",
    ]
    fields = ("event", "epoch", "epochs", "loss", "score", "value", "best", "best_epoch", "eta_seconds")
    assert [lines(stream)[1][name] for name in fields] == [
        "epoch", 3, 4, 0.4, "validation accuracy", 0.912, 0.915, 2, 17.0
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
