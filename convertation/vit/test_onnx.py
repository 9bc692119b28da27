"""Check an ONNX file: `python test_onnx.py [--onnx M] [--weights W --inputs PICTURES_OR_NPY]`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from nightshift_common.earlier_scripts import run

run("conversion_jobs.test_onnx", onnx=Path("model_repository_running/vit_onnx/1/model.onnx"))
