"""The real pictures, embeddings or arrays that conversions are verified with."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from jobkit.bottle import Bottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment
from jobkit.model_spec import ArraySpec, HeadSpec, Spec, input_shape, prepare
from jobkit.snapshot import Sample, read_snapshot

MEMORY = 2**30
"""Bytes of arrays that verify at once: volumes of 240 x 480 x 480 take 0.2 GB each."""


def golden_inputs(
    bottle: Bottle, experiment: Experiment, spec: Spec, snapshot_id: str | None, count: int
) -> tuple[NDArray[np.float32], list[str]]:
    """Return `count` real inputs (all, where there are fewer) as float32 [n, *input_shape], and their names.

    For a model of pictures they are golden pictures of the snapshot; for a head the embeddings, for a model of other
    arrays the arrays that came with it, or else random ones (see `are_random`); of large ones fewer than `count`.

    Raises:
        DataValidationError: the snapshot is not there, has no golden pictures, or a picture cannot be decoded.
        ConfigurationError: a model of pictures without a snapshot.
    """
    if isinstance(spec, HeadSpec):
        embeddings = np.load(bottle.local(experiment.embeddings), allow_pickle=False)[:count]
        return embeddings, array_names(len(embeddings))
    if isinstance(spec, ArraySpec):
        return _arrays(bottle, experiment, spec, count)
    if snapshot_id is None:
        raise ConfigurationError(f"{experiment.folder} takes pictures: --snapshot_id says which ones verify it")
    samples = choose(read_snapshot(bottle, experiment.group, snapshot_id).split("golden"), count)
    inputs = np.stack([prepare(bottle.local(sample.path), spec.preprocessing) for sample in samples])
    return inputs, [f"{sample.source} ({', '.join(sample.labels)})" for sample in samples]


def named_inputs(
    bottle: Bottle, experiment: Experiment, spec: Spec, snapshot_id: str | None, names: list[str]
) -> NDArray[np.float32]:
    """Return the inputs that reference outputs are of, as float32 [n, *input_shape], in the order of `names`.

    Raises:
        DataValidationError: the snapshot or one of the inputs is not there, or a picture cannot be decoded.
        ConfigurationError: a model of pictures without a snapshot.
    """
    if isinstance(spec, HeadSpec | ArraySpec):
        key = experiment.embeddings if isinstance(spec, HeadSpec) else experiment.inputs
        arrays = np.load(bottle.local(key), allow_pickle=False, mmap_mode="r")
        return np.stack([arrays[int(name.rpartition(" ")[2])] for name in names])
    if snapshot_id is None:
        raise ConfigurationError(f"{experiment.folder} takes pictures: --snapshot_id says which ones verify it")
    known = {sample.source: sample for sample in read_snapshot(bottle, experiment.group, snapshot_id).split("golden")}
    if missing := [name for name in names if name not in known]:
        raise DataValidationError(
            f"the snapshot {snapshot_id} has no golden picture {missing[0]!r}, of which an output is expected: verify "
            "with the pictures that came with the weights"
        )
    return np.stack([prepare(bottle.local(known[name].path), spec.preprocessing) for name in names])


def array_names(count: int) -> list[str]:
    """Return the names of arrays, in their order."""
    return [f"input {index}" for index in range(count)]


def are_random(bottle: Bottle, experiment: Experiment, spec: Spec) -> bool:
    """Whether random numbers verify the model, since nobody gave real inputs."""
    return isinstance(spec, ArraySpec) and not bottle.exists(experiment.inputs)


def _arrays(
    bottle: Bottle, experiment: Experiment, spec: ArraySpec, count: int
) -> tuple[NDArray[np.float32], list[str]]:
    if are_random(bottle, experiment, spec):
        shape = input_shape(spec)
        count = fitting(count, shape)
        values = np.random.default_rng(0).standard_normal((count, *shape), np.float32)
        return values, [f"random input {index}" for index in range(count)]
    arrays = np.load(bottle.local(experiment.inputs), allow_pickle=False, mmap_mode="r")
    values = np.array(arrays[: fitting(count, arrays.shape[1:])])
    return values, array_names(len(values))


def fitting(count: int, shape: tuple[int, ...], memory: int = MEMORY) -> int:
    """Return how many of `count` arrays float32 of `shape` fit in `memory` bytes: one at least."""
    return max(1, min(count, memory // (4 * math.prod(shape))))


def choose(golden: list[Sample], count: int) -> list[Sample]:
    """Return `count` pictures (all, where there are fewer), from all classes in turn; the same ones every time.

    Of pictures with objects the first class counts; those that show none come last.

    Raises:
        DataValidationError: there is none.
    """
    if not golden:
        raise DataValidationError("the snapshot has no golden pictures to verify with")
    by_label: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(golden, key=lambda s: s.sha256):
        by_label[next(iter(sample.labels), "")].append(sample)
    empty = by_label.pop("", [])
    longest = max(map(len, by_label.values()), default=0)
    turns = [by_label[label][i] for i in range(longest) for label in sorted(by_label) if i < len(by_label[label])]
    return [*turns, *empty][:count]
