"""Drawn scenes as a COCO file with its pictures: `python -m tests.support.coco_scenes FOLDER [PICTURES]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np

from tests.support.scenes import HEIGHT, LABELS, WIDTH, scene


def write(folder: Path, count: int) -> None:
    """Write `annotations.json` and `<number>.jpg` into `folder`; every sixth picture is a background."""
    random = np.random.default_rng(7)
    folder.mkdir(parents=True)
    images, annotations = [], []
    for number in range(1, count + 1):
        drawn, objects = scene(random, 0 if number % 6 == 0 else 1 + number % 3)
        cv2.imwrite(str(folder / f"{number}.jpg"), drawn)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT})
        for found in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": LABELS.index(found.label) + 1,
                    "bbox": list(found.box),
                    "area": found.box[2] * found.box[3],
                    "segmentation": [list(polygon) for polygon in found.polygons],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": label} for number, label in enumerate(LABELS, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 150)
