"""What a training will take, as `--check` tells it."""

from __future__ import annotations

from jobkit import job


class Estimate(job.Result):
    """What a training will take, from a few steps of it on this machine."""

    parameters: int
    train_pictures: int
    val_pictures: int
    updates_per_epoch: int
    step_seconds: float
    """A batch of training, with what it waits for its pictures."""
    val_step_seconds: float
    epoch_seconds: float
    total_seconds: float
    """All epochs; the pictures decoded once where they fit into memory."""
    memory_gib: float
    """The most that was in use: of the GPU where there is one, else of this process and its pictures."""
    device: str
