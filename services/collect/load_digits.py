"""Write scikit-learn's 1,797 handwritten digits as picture files into a collect folder.

They are 8x8 scans of real handwriting with 17 gray values (E. Alpaydin and C. Kaynak, "Optical Recognition of
Handwritten Digits", UCI Machine Learning Repository, 1998). Here they become gray 32x32 PNG files, ink white on black.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from services.collect.importers import Item, add_items
from services.collect.store import Store

GROUP = "digits"
SIDE = 32
# The data set lists its writers one after the other: neighbors in a class are mostly by one hand. A picset holds
# neighbors, so that a split by picset mostly keeps one writer's digit on one side.
PICSET_SIZE = 6


def digits() -> Iterator[Item]:
    """Yield the digits as PNG files in picsets of `PICSET_SIZE`."""
    from sklearn.datasets import load_digits

    data = load_digits()
    seen = dict.fromkeys(range(10), 0)
    for number, (picture, digit) in enumerate(zip(data.images, data.target, strict=True)):
        label = int(digit)
        gray = Image.fromarray((picture * (255 / 16)).round().astype("uint8")).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC
        )
        buffer = io.BytesIO()
        gray.save(buffer, "PNG")
        picset = f"{label}-{seen[label] // PICSET_SIZE:03d}"
        seen[label] += 1
        yield Item(f"digit_{number:04d}.png", buffer.getvalue(), str(label), picset, SIDE, SIDE)


def main() -> None:
    """Load the digits."""
    parser = argparse.ArgumentParser(prog="python -m services.collect.load_digits", description=__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="the collect server's folder")
    new = add_items(Store(parser.parse_args().directory), GROUP, digits(), source="scikit-learn").new
    sys.stdout.write(f"group {GROUP}: {new} new pictures\n")


if __name__ == "__main__":
    main()
