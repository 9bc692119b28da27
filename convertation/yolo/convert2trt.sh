#!/bin/sh
# An ONNX file to a TensorRT plan, inside the container of ../run.sh; without files, from where torch2onnx.py writes:
#   sh convert2trt.sh [/abs/path/to/model.onnx /abs/path/to/model.plan [--precision fp32] [--inputs pictures]]
set -eu
project="$(cd "$(dirname "$0")/../.." && pwd)"
repository="$project/model_repository_running"
[ $# -gt 0 ] || set -- "$repository/yolo_onnx/1/model.onnx" "$repository/yolo_trt/1/model.plan"
PYTHONPATH="$project" exec "${PYTHON:-python3}" -m conversion_jobs.convert2trt "$@"
