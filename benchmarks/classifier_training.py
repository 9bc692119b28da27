"""The trainer against a bare PyTorch loop: same model, batch, precision, optimizer; augmented pictures in memory.

    python -m benchmarks.classifier_training [--model test_resnet --size 32 --batch 64 --steps 60 --rounds 5]

Rounds of both alternate, so that a busy machine slows both; what counts is the median of the rounds' ratios. On a GPU
it also says what share of the throughput with synthetic input is reached with files (`--files FOLDER`).
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
from jobkit.paths import ExperimentPaths
from training_jobs.classifier import training
from training_jobs.classifier.config import Config
from training_jobs.classifier.data import Pictures
from training_jobs.classifier.examples import Example, Examples
from training_jobs.classifier.journal import Journal

CLASSES = 10
GPU = torch.cuda.is_available()


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


def bare_loop(options: argparse.Namespace, pictures: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return wall and CPU seconds of `steps` steps of the loop that one writes by hand."""
    device = "cuda" if GPU else "cpu"
    torch.manual_seed(0)
    model = Classifier(options.model, CLASSES).to(device, memory_format=torch.channels_last)
    if options.compile:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(1, 3, 1, 1) * 255
    std = torch.tensor([0.229, 0.224, 0.225], device=device).view(1, 3, 1, 1) * 255
    dtype = {16: torch.float16, "bf16": torch.bfloat16}.get(options.precision)
    scaler = torch.amp.GradScaler(device, enabled=options.precision == 16)
    clock = (0.0, 0.0)
    for step in range(2 * options.steps):
        if step == options.steps:  # the first half warms up, as the trainer's first epoch does
            _wait()
            clock = time.perf_counter(), time.process_time()
        at = step % options.steps * options.batch
        batch = pictures[at : at + options.batch].to(device, non_blocking=True)
        target = labels[at : at + options.batch].to(device, non_blocking=True)
        planes = batch.permute(0, 3, 1, 2).float().sub_(mean).div_(std)
        with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = functional.cross_entropy(model(planes), target)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    _wait()
    return time.perf_counter() - clock[0], time.process_time() - clock[1]


class Clock(Journal):
    """The trainer's own journal, with the CPU's time of the last epoch's training steps."""

    def _start_epoch(self) -> None:
        super()._start_epoch()
        _wait()
        self.clock = time.perf_counter(), time.process_time()

    def on_validation_start(self, *arguments: Any) -> None:
        super().on_validation_start(*arguments)
        _wait()
        self.spent = time.perf_counter() - self.clock[0], time.process_time() - self.clock[1]


def trainer(options: argparse.Namespace, examples: Examples) -> tuple[float, float]:
    """Return wall and CPU seconds of the second epoch's training steps."""
    config = configuration(options)
    with tempfile.TemporaryDirectory() as folder:
        bottle, experiment = FolderBottle(Path(folder)), ExperimentPaths("models/benchmark/v__0")
        clock = Clock(config, bottle, experiment, None)
        training.fit(config, examples, bottle, experiment, clock)
        return clock.spent


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


def _wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def main() -> None:
    """Print one line a round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=8 if GPU else 0)
    parser.add_argument("--precision", default=32, type=lambda value: value if value == "bf16" else int(value))
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    pictures, labels, examples = in_memory(options)
    ratios = []
    for _ in range(options.rounds):
        bare, ours = bare_loop(options, pictures, labels), trainer(options, examples)
        ratios.append([one / other for one, other in zip(bare, ours, strict=True)])
        count = options.steps * options.batch
        print(
            f"bare {count / bare[0]:.0f} pictures/s, trainer {count / ours[0]:.0f}: "
            f"{ratios[-1][0]:.3f} of the bare loop by wall time, {ratios[-1][1]:.3f} by CPU time",
            flush=True,
        )
    wall, cpu = (statistics.median(ratio) for ratio in zip(*ratios, strict=True))
    print(f"{options.model} {options.size} px batch {options.batch}: median {wall:.3f} (wall), {cpu:.3f} (CPU)")


if __name__ == "__main__":
    main()
