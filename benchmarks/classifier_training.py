"""The trainer against a bare PyTorch loop: same model, batch, precision, optimizer; augmented pictures in memory.

    python -m benchmarks.classifier_training [--model resnet18 --size 96 --batch 32 --steps 100]

Both train in one process by turns: the bare loop takes `--block` steps whenever the trainer has taken as many. A pair
of blocks so meets the same machine, however busy it is; what counts is the median of the pairs' ratios. The bare loop
takes torch's default optimizer step and, with `--fused`, the fused one that the trainer takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from jobkit.bottle import FolderBottle
from jobkit.classifier import Classifier
from jobkit.experiment import Experiment
from training_jobs.classifier import training
from training_jobs.classifier.config import Config
from training_jobs.classifier.data import Pictures
from training_jobs.classifier.examples import Example, Examples
from training_jobs.classifier.training_callback import TrainingCallback

CLASSES = 10
GPU = torch.cuda.is_available()
Clocks = tuple[float, float]


def configuration(options: argparse.Namespace) -> Config:
    """Return the trainer's configuration."""
    return Config.model_validate_json(
        json.dumps(
            {
                "dataset": {
                    "image_size": options.size,
                    "data_loaders": {"train_batch_size": options.batch, "num_workers": options.workers},
                },
                "model": {"backbone_name": options.model},
                "training": {
                    "epochs": 2,
                    "precision": options.precision,
                    "compile": options.compile,
                    "save_checkpoints": False,
                },
            }
        )
    )


class BareLoop:
    """The loop that one writes by hand."""

    def __init__(self, options: argparse.Namespace, pictures: Tensor, labels: Tensor) -> None:
        self.options, self.pictures, self.labels = options, pictures, labels
        self.device = "cuda" if GPU else "cpu"
        torch.manual_seed(0)
        self.model = Classifier(options.model, CLASSES).to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        if options.compile:
            self.model.compile()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=options.fused or None)
        self.mean = torch.tensor([0.485, 0.456, 0.406], device=self.device).view(1, 3, 1, 1) * 255
        self.std = torch.tensor([0.229, 0.224, 0.225], device=self.device).view(1, 3, 1, 1) * 255
        self.dtype = {16: torch.float16, "bf16": torch.bfloat16}.get(options.precision)
        self.scaler = torch.amp.GradScaler(self.device, enabled=options.precision == 16)

    def step(self, number: int) -> None:
        """Train on one batch."""
        at = number % self.options.steps * self.options.batch
        batch = self.pictures[at : at + self.options.batch].to(self.device, non_blocking=True)
        target = self.labels[at : at + self.options.batch].to(self.device, non_blocking=True)
        planes = batch.permute(0, 3, 1, 2).float().sub_(self.mean).div_(self.std)
        with torch.autocast(self.device, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            loss = functional.cross_entropy(self.model(planes), target)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


class Turns(TrainingCallback):
    """The trainer's own journal, which lets the bare loop take its turn after each block of the trainer's steps."""

    def __init__(self, bare: BareLoop, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.bare, self.steps = bare, 0
        self.blocks: list[tuple[Clocks, Clocks]] = []  # wall and CPU seconds: the trainer's, the bare loop's
        self.since = _clocks()

    def on_train_batch_end(self, *arguments: Any) -> None:
        super().on_train_batch_end(*arguments)
        self.steps += 1
        if self.steps % self.bare.options.block:
            return
        ours = _clocks()
        for number in range(self.steps - self.bare.options.block, self.steps):
            self.bare.step(number)
        bare = _clocks()
        if self.steps > self.bare.options.steps:  # the first epoch warms both up
            self.blocks.append((_between(self.since, ours), _between(ours, bare)))
        self.since = _clocks()

    def on_train_epoch_start(self, *arguments: Any) -> None:
        super().on_train_epoch_start(*arguments)
        self.since = _clocks()


def by_turns(options: argparse.Namespace) -> list[tuple[Clocks, Clocks]]:
    """Return wall and CPU seconds of the blocks of the second epoch: the trainer's and the bare loop's."""
    pictures, labels, examples = in_memory(options)
    config = configuration(options)
    with tempfile.TemporaryDirectory() as folder:
        bottle, experiment = FolderBottle(Path(folder)), Experiment("models/benchmark/v__0")
        turns = Turns(BareLoop(options, pictures, labels), config, bottle, experiment, None)
        training.fit(config, examples, bottle, experiment, turns)
        return turns.blocks


def in_memory(options: argparse.Namespace) -> tuple[Tensor, Tensor, Examples]:
    """Return random pictures and labels, and examples that the trainer's pipeline reads from the same memory."""
    generator = np.random.default_rng(0)
    count = options.steps * options.batch
    pictures = torch.from_numpy(generator.integers(0, 256, (count, options.size, options.size, 3), dtype=np.uint8))
    labels = torch.from_numpy(generator.integers(0, CLASSES, count))
    examples = [Example(Path(str(index)), int(label)) for index, label in enumerate(labels)]

    def cache(self: Pictures) -> bool:
        self.cached = pictures.numpy(), np.full((count, 2), options.size, np.int32)
        return True

    Pictures.cache = cache  # type: ignore[method-assign]
    return (
        pictures,
        labels,
        Examples([str(c) for c in range(CLASSES)], examples, examples[: options.batch], "benchmark"),
    )


def _clocks() -> Clocks:
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def _between(start: Clocks, end: Clocks) -> Clocks:
    return end[0] - start[0], end[1] - start[1]


def main() -> None:
    """Print the medians by both clocks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--block", type=int, default=25 if GPU else 1)
    parser.add_argument("--workers", type=int, default=8 if GPU else 0)
    parser.add_argument("--precision", default=32, type=lambda value: value if value == "bf16" else int(value))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--fused", action="store_true", help="the fused optimizer in the bare loop too")
    options = parser.parse_args()
    blocks = by_turns(options)
    for clock, name in enumerate(("wall", "CPU")):
        ratios = [bare[clock] / ours[clock] for ours, bare in blocks]
        low, middle, high = statistics.quantiles(ratios, n=4)
        own, other = (1000 / options.block * statistics.median(pair[who][clock] for pair in blocks) for who in (0, 1))
        print(
            f"{options.model} {options.size} px batch {options.batch}, {name} time: a step {own:.2f} ms, in the bare "
            f"loop {other:.2f} ms; throughput {middle:.3f} of the bare loop's (quartiles {low:.3f}..{high:.3f})"
        )


if __name__ == "__main__":
    main()
