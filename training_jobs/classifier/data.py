"""The input pipeline: examples -> uint8 batches.

Everything random about a picture comes from (seed, epoch, index), never from a generator's state: batches are the same
for any number of worker processes, and a resumed training sees what an uninterrupted one sees. The sampler sends the
epoch along with each index, so that what depends on it reaches workers that live for many epochs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from jobkit import model_spec
from jobkit.progress import Progress
from training_jobs.classifier.config import Config
from training_jobs.classifier.examples import Example
from training_jobs.classifier.picture_loading import Backgrounds, load, without_background
from training_jobs.classifier.transforms.augmentation import Picture

CACHE_BYTES = 1 << 30  # sets up to 1 GiB are decoded once and kept
Batch = tuple[Tensor, Tensor]
Index = tuple[int, int]


class Part(NamedTuple):
    """Which of the processes that train together this is: `rank` from 0, of `world`."""

    rank: int = 0
    world: int = 1


ALONE = Part()


class BatchSampler(Sampler[list[Index]]):
    """Yields batches of (epoch, index), shuffled by (seed, epoch); with `shares` drawn by them, with replacement.

    Every weight update has `batch_size * accumulated` pictures: those that do not fill a last one wait for another
    epoch. A set too small for one update is used up in one epoch.

    Processes that train together share each batch in equal parts: an update has the same pictures for any number of
    them, and the mean of their gradients is the batch's.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, accumulated: int = 1, part: Part = ALONE,
        shares: NDArray[np.float64] | None = None,
    ) -> None:  # fmt: skip
        self.size, self.seed, self.part, self.shares = size, seed, part, shares
        self.batch_size = max(min(batch_size, size) // part.world, 1) * part.world
        batches = size // self.batch_size
        self.batches = batches - batches % accumulated or batches
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass. Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Index]]:
        epoch = self.epoch
        rng = np.random.default_rng([self.seed, epoch])
        # All processes draw the same, so that together they see what one alone would.
        order = rng.permutation(self.size) if self.shares is None else rng.choice(self.size, self.size, p=self.shares)
        share = self.batch_size // self.part.world
        for start in range(self.part.rank * share, len(self) * self.batch_size, self.batch_size):
            yield [(epoch, int(index)) for index in order[start : start + share]]


class Pictures(Dataset[Batch]):
    """Batches of pictures: uint8 [N, H, W, C] and class indices, int64 [N].

    In a set that is multi-label the second is uint8 [N, K], 1 for each class that a picture shows.

    In training the pictures are turned, pasted on backgrounds and augmented; in validation only `val_augmentations`
    change them, the same way every time.
    """

    def __init__(self, config: Config, examples: Sequence[Example], training: bool) -> None:
        self.examples, self.training = examples, training
        self.how, self.seed = config.preprocessing, config.seed
        dataset, epochs = config.dataset, config.training.epochs
        self.pads_first = config.pads_first
        self.augmentations = dataset.train_augmentations if training else dataset.val_augmentations
        self.schedule = [dataset.augmentation_p_schedule.probability(epoch, epochs) for epoch in range(epochs)]
        self.background_p = dataset.insert_background_p if training else 0.0
        self.background_ratio = dataset.background_max_ratio
        self.backgrounds = (
            Backgrounds(config.directories.backgrounds, self.how, config.dataset.max_side)
            if self.background_p
            else None
        )
        self.is_random = bool(self.augmentations or self.background_p or any(e.turns is None for e in examples))
        self.cached: tuple[NDArray[np.uint8], NDArray[np.int32]] | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, indices: list[Index]) -> Batch:
        """Return one batch; every picture is written into it once."""
        how = self.how
        if self.ready is not None:
            chosen = [index for _, index in indices]
            labels = np.array([self.examples[index].label for index in chosen], np.int64)
            return torch.from_numpy(self.ready[chosen]), self._targets(chosen, labels)
        batch = np.empty((len(indices), how.height, how.width, how.channels), np.uint8)
        labels = np.empty(len(indices), np.int64)
        for row, (epoch, index) in enumerate(indices):
            batch[row], labels[row] = self.picture(epoch, index)
        return torch.from_numpy(batch), self._targets([index for _, index in indices], labels)

    def _targets(self, chosen: list[int], labels: NDArray[np.int64]) -> Tensor:
        """Return what the examples `chosen` show: `labels`, or all classes of each where there may be several."""
        vectors = [np.frombuffer(found, np.uint8) for index in chosen if (found := self.examples[index].present)]
        return torch.from_numpy(np.stack(vectors) if vectors else labels)

    def picture(self, epoch: int, index: int) -> tuple[NDArray[np.uint8], int]:
        """Return one picture as the model gets it in `epoch`, before normalization: uint8 [H, W, C]; and its class."""
        example = self.examples[index]
        picture, mask = self._loaded(index)
        if not self.is_random and mask is None and not example.turns:
            return model_spec.fit(picture, self.how), example.label
        rng = np.random.default_rng([self.seed, epoch, index])
        label, turns = example.label, example.turns
        if turns is None:
            label = turns = int(rng.integers(4))
        if turns:
            picture, mask = np.rot90(picture, turns), None if mask is None else np.rot90(mask, turns)
        if self.backgrounds is not None and rng.random() < self.background_p:
            ratio = rng.uniform(1, self.background_ratio)
            picture = self.backgrounds.paste(np.ascontiguousarray(picture), mask, ratio, rng)
        elif mask is not None:
            picture = without_background(picture, mask, self.how.pad_value)
        if self.pads_first or not self.augmentations:
            picture = model_spec.fit(np.ascontiguousarray(picture), self.how)
        if self.augmentations and (not self.training or rng.random() < self.schedule[epoch]):
            changed: Picture = np.ascontiguousarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
            for augmentation in self.augmentations:
                changed = augmentation(changed, rng)
            picture = changed
        if picture.shape[:2] != (self.how.height, self.how.width) or picture.ndim == 2:
            picture = model_spec.fit(np.ascontiguousarray(picture), self.how)
        return picture, label

    @cached_property
    def ready(self) -> NDArray[np.uint8] | None:
        """All pictures as the model gets them, uint8 [N, H, W, C], where they are cached and nothing changes them."""
        if self.cached is None or self.is_random or any(e.person or e.turns for e in self.examples):
            return None
        stored, sizes = self.cached
        return stored if (sizes == stored.shape[1:3]).all() else None

    def _loaded(self, index: int) -> tuple[Picture, Picture | None]:
        if self.cached is None:
            return load(self.examples[index], self.how, quick=self.training)
        stored, sizes = self.cached
        height, width = sizes[index]
        content, channels = stored[index, :height, :width], self.how.channels
        return content[:, :, :channels], content[:, :, channels] if content.shape[2] > channels else None

    def cache(self) -> bool:
        """Decode every picture once into shared memory, if all fit into `CACHE_BYTES`; return whether they did."""
        how = self.how
        planes = how.channels + any(example.person is not None for example in self.examples)
        if len(self) * how.height * how.width * planes > CACHE_BYTES:
            return False
        shape = (len(self), how.height, how.width, planes)
        stored = torch.empty(shape, dtype=torch.uint8).share_memory_().numpy()
        sizes = np.empty((len(self), 2), np.int32)
        progress = Progress("decode", len(self), "pictures")

        def fill(index: int) -> None:
            picture, mask = self._loaded(index)
            height, width = picture.shape[:2]
            place = stored[index, :height, :width]
            place[:, :, : how.channels] = picture
            if planes > how.channels:
                place[:, :, how.channels] = 255 if mask is None else mask
            sizes[index] = height, width

        with ThreadPoolExecutor(cores()) as pool:
            for _ in pool.map(fill, range(len(self))):
                progress.advance()
        self.cached = stored, sizes
        return True


def loaders(
    config: Config, train: Sequence[Example], val: Sequence[Example], epoch: int, gpu: bool, part: Part = ALONE
) -> tuple[DataLoader[Batch], DataLoader[Batch]]:
    """Return the loaders of training, from `epoch` on, and of validation: this process's part of both."""
    batch, accumulated = config.dataset.data_loaders.train_batch_size, config.training.accumulate_grad_batches
    balanced = config.dataset.data_loaders.sampling == "balanced"
    shares = balanced_shares(train) if balanced else None
    sampler = BatchSampler(len(train), batch, config.seed, accumulated, part, shares)
    sampler.set_epoch(epoch)
    loader = _loader(config, Pictures(config, train, training=True), sampler, gpu, part)
    return loader, validation_loader(config, val, gpu, part)


def balanced_shares(examples: Sequence[Example]) -> NDArray[np.float64] | None:
    """Return how likely each example is drawn, float64 [N], so that every class is as likely as any other.

    None where the classes are drawn anyhow, as quarter turns are: each is as likely already.
    """
    if any(example.turns is None for example in examples):
        return None
    labels = np.asarray([example.label for example in examples])
    share = 1 / np.bincount(labels)[labels]
    return np.asarray(share / share.sum(), np.float64)


def validation_loader(config: Config, val: Sequence[Example], gpu: bool, part: Part = ALONE) -> DataLoader[Batch]:
    """Return the loader of validation: of several processes each sees its own pictures, and none is seen twice."""
    mine, size = range(part.rank, len(val), part.world), config.dataset.data_loaders.val_batch_size
    batches = [[(0, index) for index in mine[start : start + size]] for start in range(0, len(mine), size)]
    return _loader(config, Pictures(config, val, training=False), batches, gpu, part)


def _loader(
    config: Config, pictures: Pictures, batches: BatchSampler | list[list[Index]], gpu: bool, part: Part
) -> DataLoader[Batch]:
    cv2.setNumThreads(0)  # one picture is too small for threads, and a pool of them breaks after a fork
    in_memory, workers = pictures.cache(), config.dataset.data_loaders.num_workers
    if workers is None:
        workers = 0 if in_memory and not gpu else min(8, max(1, (cores() - 1) // part.world))
    return DataLoader(
        pictures,
        sampler=batches,  # not batch_sampler: Lightning tells only a sampler which epoch it is
        batch_size=None,
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=gpu,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
    )


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


def _as_is(batch: Any) -> Any:
    return batch
