"""The real pictures that conversions are verified with."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from conversion_jobs.experiment import Experiment
from jobkit.bottle import Bottle
from jobkit.errors import DataRefused
from jobkit.modelspec import ModelSpec, prepare
from jobkit.snapshot import Sample, read_snapshot


def golden_inputs(
    bottle: Bottle, experiment: Experiment, spec: ModelSpec, snapshot_id: str, count: int
) -> tuple[NDArray[np.float32], list[str]]:
    """Return `count` golden pictures (all, where there are fewer) as float32 [n, C, H, W], and their names.

    Raises:
        DataRefused: the snapshot is not there, has no golden pictures, or a picture cannot be decoded.
    """
    samples = choose(read_snapshot(bottle, experiment.group, snapshot_id).split("golden"), count)
    inputs = np.stack([prepare(bottle.local(sample.path), spec.preprocessing) for sample in samples])
    return inputs, [f"{sample.source} ({sample.label})" for sample in samples]


def choose(golden: list[Sample], count: int) -> list[Sample]:
    """Return `count` pictures (all, where there are fewer), from all classes in turn; the same ones every time.

    Raises:
        DataRefused: there is none.
    """
    if not golden:
        raise DataRefused("the snapshot has no golden pictures to verify with")
    by_label: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(golden, key=lambda s: s.sha256):
        by_label[sample.label].append(sample)
    longest = max(map(len, by_label.values()))
    turns = [by_label[label][i] for i in range(longest) for label in sorted(by_label) if i < len(by_label[label])]
    return turns[:count]
