"""Check an ONNX file: `python test_onnx.py --onnx M [--weights W --inputs PICTURES_OR_NPY]`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from command import run

run("test_onnx")
