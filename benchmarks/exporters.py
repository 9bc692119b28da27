"""What torch's two exporters take, and what they give: CPU seconds, memory, opset, nodes, and the graph's own speed.

    .venv/jobs/bin/python -m benchmarks.exporters [--architectures resnet18,vit_base_patch16_224]

Each export is one of `export_module` in a process of its own, with its judgment on noise.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from conversion_jobs.onnx.export import export_module
from conversion_jobs.onnx.mapped_file import split_file
from conversion_jobs.onnx.session import OnnxModel, measure_latency
from nightshift_common.options.conversion import ExporterName

SIDES = {
    "resnet18": 64,
    "vit_tiny_patch16_224": 224,
    "efficientnet_b0": 64,
    "swin_tiny_patch4_window7_224": 224,
    "vit_base_patch16_224": 224,
}
EXPORTERS = ("torchscript", "dynamo")
OPSET = 17


def main() -> None:
    """Export each architecture with both; print a row each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--architectures", default=",".join(SIDES), help="a part of the list, with commas")
    parser.add_argument("--exporter", choices=EXPORTERS, help="export one architecture in this very process")
    arguments = parser.parse_args()
    if arguments.exporter:
        print(json.dumps(measured(arguments.architectures, arguments.exporter)))
        return
    print("| architecture | exporter | opset | CPU seconds | wall seconds | memory, MiB | nodes | one picture, ms |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for architecture in arguments.architectures.split(","):
        for exporter in EXPORTERS:
            command = [sys.executable, "-m", "benchmarks.exporters", "--architectures", architecture]
            done = subprocess.run([*command, "--exporter", exporter], capture_output=True, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            print(f"| {architecture} | {exporter} | {' | '.join(map(str, row.values()))} |", flush=True)


def measured(architecture: str, exporter: ExporterName) -> dict[str, Any]:
    """Export one architecture; `memory` is the peak beyond what the process takes with the model in it."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, side = timm.create_model(architecture, num_classes=10).eval(), SIDES[architecture]
    before, started, cpu = peak(), time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        made = export_module(model, (3, side, side), path, output="logits", opset=OPSET, metadata={}, exporter=exporter)
        row = {
            "opset": made.opset,
            "cpu": round(time.process_time() - cpu, 1),
            "wall": round(time.monotonic() - started, 1),
            "memory": round(peak() - before),
            "nodes": len(split_file(path).graph.node),
        }
        latency = measure_latency(OnnxModel(path, os.cpu_count() or 1), np.zeros((1, 3, side, side), np.float32), 1)
        return row | {"latency": latency.median}


def peak() -> float:
    """Return the most memory that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
