"""A classifier's head to ONNX: `python torch2onnx.py [--weights W] [--output M] [--activation sigmoid]`.

Without options it is the binary one; for the other: `--weights ../../training/weights/CT-RATE/model_multilabel.pth
--output ../../model_repository_running/multilabel_onnx/1/model.onnx`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from nightshift_common.earlier_scripts import run

run(
    "conversion_jobs.torch2onnx",
    family="head",
    weights=Path("training/weights/CT-RATE/model_binary.pth"),
    output=Path("model_repository_running/binary_onnx/1/model.onnx"),
)
