"""The input pipeline: files -> uint8 batches.

Everything random about a picture comes from (seed, epoch, index), never from a generator's state: batches are the same
for any number of worker processes, and a resumed training sees what an uninterrupted one sees. The sampler sends the
epoch along with each index, so that what depends on it reaches workers that live for many epochs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from jobkit import modelspec
from jobkit.modelspec import Preprocessing
from jobkit.progress import Progress
from training_jobs.classifier import config as configuration
from training_jobs.classifier.examples import Example
from training_jobs.classifier.transforms.augmentation import Picture, RandomTransform

CACHE_BYTES = 1 << 30  # sets up to 1 GiB are decoded once and kept
Batch = tuple[Tensor, Tensor]
Index = tuple[int, int]


class BatchSampler(Sampler[list[Index]]):
    """Yields batches of (epoch, index), shuffled by (seed, epoch); what does not fill a last batch waits for another epoch.

    A set that is smaller than one batch is one batch.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed = size, min(batch_size, size), seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass. Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[Index]]:
        epoch = self.epoch
        order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield [(epoch, int(index)) for index in order[start : start + self.batch_size]]


class Pictures(Dataset[Batch]):
    """Batches of pictures: uint8 [N, H, W, C] and int64 [N].

    `schedule(epoch)` is the probability that a picture is augmented at all.
    """

    def __init__(self, examples: Sequence[Example], how: Preprocessing, augmentations: Sequence[RandomTransform],
                 seed: int, schedule: list[float] | None = None) -> None:  # fmt: skip
        self.examples, self.how, self.augmentations = examples, how, augmentations
        self.seed, self.schedule = seed, schedule
        self.cached: Tensor | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, indices: list[Index]) -> Batch:
        """Return one batch; every picture is written into it once."""
        how = self.how
        batch = np.empty((len(indices), how.height, how.width, how.channels), np.uint8)
        labels = np.empty(len(indices), np.int64)
        for row, (epoch, index) in enumerate(indices):
            batch[row] = self.picture(epoch, index)
            labels[row] = self.examples[index].label
        return torch.from_numpy(batch), torch.from_numpy(labels)

    def picture(self, epoch: int, index: int) -> NDArray[np.uint8]:
        """Return one picture as the model gets it in `epoch`, before normalisation: uint8 [H, W, C]."""
        picture = self._decoded(index)
        if not self.augmentations:
            return picture
        rng = np.random.default_rng([self.seed, epoch, index])
        if self.schedule is not None and rng.random() >= self.schedule[epoch]:
            return picture
        changed: Picture = picture[:, :, 0] if picture.shape[2] == 1 else picture
        for augmentation in self.augmentations:
            changed = augmentation(changed, rng)
        return modelspec.fit(changed, self.how)

    def _decoded(self, index: int) -> NDArray[np.uint8]:
        if self.cached is not None:
            return self.cached[index].numpy()
        return modelspec.read_picture(self.examples[index].path, self.how)

    def cache(self) -> bool:
        """Decode every picture once into shared memory, if all fit into `CACHE_BYTES`; return whether they did."""
        how = self.how
        if len(self) * how.height * how.width * how.channels > CACHE_BYTES:
            return False
        cached = torch.empty((len(self), how.height, how.width, how.channels), dtype=torch.uint8)
        progress = Progress("decode", len(self), "pictures")
        with ThreadPoolExecutor(_cores()) as pool:
            for index, picture in enumerate(pool.map(self._decoded, range(len(self)))):
                cached[index] = torch.from_numpy(picture)
                progress.advance()
        self.cached = cached.share_memory_()
        return True


def loaders(
    config: configuration.Config, train: Sequence[Example], val: Sequence[Example], epoch: int, gpu: bool
) -> tuple[DataLoader[Batch], DataLoader[Batch]]:
    """Return the loaders of training, from `epoch` on, and of validation."""
    cv2.setNumThreads(0)  # one picture is too small for threads, and a pool of them breaks after a fork
    dataset, epochs = config.dataset, config.training.epochs
    schedule = [dataset.augmentation_p_schedule.probability(e, epochs) for e in range(epochs)]
    sets = (
        Pictures(train, config.preprocessing, dataset.train_augmentations, config.seed, schedule),
        Pictures(val, config.preprocessing, dataset.val_augmentations, config.seed),
    )
    cached = [pictures.cache() for pictures in sets]
    sampler = BatchSampler(len(train), dataset.data_loaders.train_batch_size, config.seed)
    sampler.set_epoch(epoch)
    val_batches = _in_order(len(val), dataset.data_loaders.val_batch_size)
    built = []
    for pictures, batches, in_memory in zip(sets, (sampler, val_batches), cached, strict=True):
        workers = dataset.data_loaders.num_workers
        if workers is None:
            workers = 0 if in_memory and not gpu else min(8, max(1, _cores() - 1))
        built.append(
            DataLoader(
                pictures,
                batch_sampler=batches,
                collate_fn=_as_is,
                num_workers=workers,
                pin_memory=gpu,
                persistent_workers=workers > 0,
                prefetch_factor=4 if workers else None,
            )  # fmt: skip
        )
    return built[0], built[1]


def _in_order(size: int, batch_size: int) -> list[list[Index]]:
    return [
        [(0, index) for index in range(start, min(start + batch_size, size))] for start in range(0, size, batch_size)
    ]


def _as_is(batch: Batch) -> Batch:
    return batch


def _cores() -> int:
    return len(os.sched_getaffinity(0))
