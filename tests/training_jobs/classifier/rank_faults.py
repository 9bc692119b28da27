"""What the tests let one of several processes do; each is told its rank, as `run_together` does."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from jobkit.errors import DataValidationError


def train_until_killed(rank: int, epoch: int, *arguments: Any) -> Any:
    """Train; process 1 is killed after the first batch of an epoch."""
    from training_jobs.classifier import training  # here: the other processes of this file start faster without torch
    from training_jobs.classifier.training_callback import TrainingCallback

    original = TrainingCallback.on_train_batch_end

    def on_train_batch_end(self: Any, trainer: Any, *rest: Any) -> None:
        original(self, trainer, *rest)
        if rank == 1 and trainer.current_epoch == epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    TrainingCallback.on_train_batch_end = on_train_batch_end  # type: ignore[method-assign]
    return training._fit_part(rank, *arguments)


def refuse(rank: int) -> int:
    """Process 1 refuses its data; process 0 waits for it without end."""
    if rank == 1:
        raise DataValidationError("a picture is damaged")
    time.sleep(600)
    return rank


def break_down(rank: int) -> int:
    """Process 0 crashes with an error that cannot be pickled."""
    if rank == 0:

        class OwnError(Exception):
            pass

        raise OwnError("out of luck")
    time.sleep(600)
    return rank


def leave(rank: int) -> int:
    """Process 1 ends without a word; process 0 has started another one, and waits."""
    if rank == 1:
        time.sleep(0.5)
        os._exit(7)
    os.system("sleep 600 &")
    time.sleep(600)
    return rank


def wait(rank: int, folder: str) -> None:
    """Say that the process is up, and wait without end."""
    (Path(folder) / str(rank)).touch()
    time.sleep(600)


def answer(rank: int, text: str) -> str:
    """Return something."""
    return f"{text} from {rank} of {os.environ['WORLD_SIZE']}"
