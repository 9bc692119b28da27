"""The ViT encoder to ONNX: `python torch2onnx.py [--weights W] [--output M] [--img-size H W] [--architecture A]`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from nightshift_common.earlier_scripts import run

run(
    "conversion_jobs.torch2onnx",
    family="vit",
    architecture="vit_base_patch16_224",
    weights=Path("training/weights/CT-RATE/ProjectionVIT_Base_V2.pt"),
    output=Path("model_repository_running/vit_onnx/1/model.onnx"),
)
