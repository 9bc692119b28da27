"""The input pipeline against torchvision's usual one: decode and augment, one process, the same pictures and sizes.

    python -m benchmarks.classifier_input [--folder FOLDER --size 224]

FOLDER is `hymenoptera/pictures/` in `NIGHTSHIFT_TEST_DATA` by default.

Both read the same files, resize them to `size`, crop at random, flip, and change brightness and contrast. What is
compared is the process's CPU time, which a busy machine distorts less than the wall clock; rounds alternate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import torch
from PIL import Image
from torchvision.transforms import v2

from nightshift_common.options.data import MAX_SIDE
from tests.support.sample_data import HYMENOPTERA, MISSING
from training_jobs.classifier.config import Config
from training_jobs.classifier.data import Pictures
from training_jobs.classifier.examples import Example, pictures_below

AUGMENTATIONS = [
    {"type": "random_resized_crop", "scale": [0.3, 1.0], "p": 1.0},
    {"type": "horizontal_flip", "p": 0.5},
    {"type": "random_brightness_contrast", "brightness_limit": 0.2, "contrast_limit": 0.2, "p": 1.0},
]


def ours(paths: list[Path], size: int) -> Callable[[int], object]:
    """Return what makes batch number `n` of 32 pictures: uint8 on the CPU; normalizing is the device's work."""
    config = Config.model_validate_json(
        json.dumps({"dataset": {"image_size": size, "train_augmentations": AUGMENTATIONS}})
    )
    pictures = Pictures(config, [Example(path, 0) for path in paths], training=True)
    return lambda n: pictures[[(0, (32 * n + i) % len(paths)) for i in range(32)]]


def usual(paths: list[Path], size: int) -> Callable[[int], object]:
    """Return the same with PIL and transforms v2, as torchvision's references do it."""
    chain = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.3, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.2, contrast=0.2),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    def batch(n: int) -> torch.Tensor:
        chosen = (paths[(32 * n + i) % len(paths)] for i in range(32))
        return torch.stack([chain(Image.open(path).convert("RGB")) for path in chosen])

    return batch


def main() -> None:
    """Print pictures a CPU second of both, and the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=HYMENOPTERA / "pictures")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not options.folder.is_dir():
        sys.exit(MISSING if HYMENOPTERA in options.folder.parents else f"there is no folder {options.folder}")
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    paths = pictures_below(options.folder, MAX_SIDE)
    with Image.open(paths[0]) as first:
        print(f"{len(paths)} pictures such as {first.size[0]}x{first.size[1]}, to {options.size}")
    makers = {"trainer": ours(paths, options.size), "torchvision": usual(paths, options.size)}
    speeds: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(options.rounds):
        for name, make in makers.items():
            make(0)
            started = time.process_time()
            for number in range(options.batches):
                make(number)
            speeds[name].append(32 * options.batches / (time.process_time() - started))
    for name, values in speeds.items():
        print(f"{name}: {statistics.median(values):.0f} pictures a CPU second ({min(values):.0f}..{max(values):.0f})")
    ratios = [a / b for a, b in zip(speeds["trainer"], speeds["torchvision"], strict=True)]
    print(f"ratio: median {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})")


if __name__ == "__main__":
    main()
