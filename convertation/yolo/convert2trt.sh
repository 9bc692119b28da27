#!/bin/sh
# An ONNX file to a TensorRT plan, inside the container of ../run.sh:
#   sh convert2trt.sh /abs/path/to/model.onnx /abs/path/to/model.plan [--precision fp32] [--inputs pictures]
set -eu
PYTHONPATH="$(cd "$(dirname "$0")/../.." && pwd)" exec "${PYTHON:-python3}" -m conversion_jobs.convert2trt "$@"
