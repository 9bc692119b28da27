"""An Ultralytics detector to ONNX: `python torch2onnx.py [--weights W] [--output M] [--img-size H W] [--nms]`.

It may be a segmenter too. `python` is the one of `.venv/detection`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from nightshift_common.earlier_scripts import run

run(
    "conversion_jobs.torch2onnx",
    family="ultralytics",
    img_size="[640,640]",
    weights=Path("training/weights/best.pt"),
    output=Path("model_repository_running/yolo_onnx/1/model.onnx"),
)
