"""Export and verification of a family on two cores: seconds and peak memory of each job, as a user runs them.

    .venv/jobs/bin/python benchmarks/conversion.py --family ultralytics     # YOLOv8s at 640 px
    .venv/jobs/bin/python benchmarks/conversion.py --family vit             # ViT-B at 224 px

"The model" is its weights in float32. A job's peak is that of its process, less what the process takes with the
libraries it needs loaded and no model ("baseline").
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MAKE_DETECTOR = """
import sys, torch
from ultralytics.nn.tasks import DetectionModel
from tests.support.detectors import detector, LABELS
model = detector("yolov8s.yaml", 1, torch.rand(2, 3, 640, 640))
torch.save({"model": model, "ema": None}, sys.argv[1])
print(sum(p.numel() for p in model.parameters()) * 4)
"""
MAKE_PICTURES = """
import sys, cv2, numpy as np
random = np.random.default_rng(0)
for n in range(8):
    cv2.imwrite(f"{sys.argv[1]}/{n}.png", cv2.resize(random.integers(0, 255, (9, 16, 3), np.uint8), (1280, 720)))
"""
MAKE_ENCODER = """
import sys, timm, torch
torch.manual_seed(0)
model = timm.create_model("vit_base_patch16_224", num_classes=0)
torch.save(model.state_dict(), sys.argv[1])
print(sum(p.numel() for p in model.parameters()) * 4)
"""
FAMILIES = {
    "ultralytics": ("YOLOv8s, 640 px", "detection", MAKE_DETECTOR, ["--img_size=[640,640]"]),
    "vit": ("ViT-B, 224 px", "jobs", MAKE_ENCODER, ["--architecture=vit_base_patch16_224", "--img_size=[224,224]"]),
}
LIBRARIES = {
    "import_weights": "import torch, cv2",
    "export_onnx": "import torch, onnx, torch.onnx",
    "verify_onnx": "import torch, onnx, onnxruntime, cv2",
}
LAST = "import resource; print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def main() -> None:
    """Measure the jobs of one family, each in a process of its own; print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--family", choices=sorted(FAMILIES), required=True)
    family = parser.parse_args().family
    name, environment, make, options = FAMILIES[family]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "pictures").mkdir()
        python("jobs", MAKE_PICTURES, folder / "pictures")
        size = int(python(environment, make, folder / "model.pt").split()[-1])
        weights = [f"--family={family}", f"--weights={folder / 'model.pt'}", "--group=g", *options]
        found = measure(folder, environment, "import_weights", [*weights, f"--pictures={folder / 'pictures'}"])
        rows = [found]
        made = found["result"]
        experiment = f"--experiment={made['experiment']}"
        rows.append(measure(folder, "jobs", "export_onnx", [experiment]))
        rows.append(measure(folder, "jobs", "verify_onnx", [experiment, f"--snapshot_id={made['snapshot_id']}"]))
    print(f"{name}, {size / 2**20:.0f} MiB of weights in float32, 8 pictures, {os.cpu_count()} cores")
    for row in rows:
        extra = row["peak"] - row["baseline"]
        print(
            f"{row['job']:15} {row['seconds']:5.1f} s   peak {row['peak'] / 2**20:5.0f} MiB, baseline "
            f"{row['baseline'] / 2**20:4.0f} MiB: {extra / size:.1f} x the model"
        )
    print(f"export and verification: {sum(row['seconds'] for row in rows[1:]):.1f} s")


def measure(folder: Path, environment: str, job: str, arguments: list[str]) -> dict[str, Any]:
    """Run a job; return its wall seconds, its peak and baseline (bytes), and its result."""
    baseline = int(python(environment, f"{LIBRARIES[job]}; {LAST}").split()[-1]) * 1024
    code = (
        "import runpy, sys, time, atexit, resource; started = time.monotonic()\n"
        "atexit.register(lambda: print('peak', time.monotonic() - started, "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))\n"
        f"sys.argv = ['{job}', *sys.argv[1:]]\n"
        f"runpy.run_module('conversion_jobs.{job}', run_name='__main__', alter_sys=True)"
    )
    folders = {"NIGHTSHIFT_BOTTLE": str(folder / "bottle"), "NIGHTSHIFT_JOB_DIR": str(folder / job)}
    last = python(environment, code, *arguments, **folders).split("peak")[-1].split()
    result = json.loads((folder / job / "result.json").read_text())["result"]
    return {
        "job": job,
        "seconds": float(last[0]),
        "peak": int(last[1]) * 1024,
        "baseline": baseline,
        "result": result,
    }


def python(environment: str, code: str, *arguments: str | Path, **variables: str) -> str:
    """Run Python code in an environment of the project; return what it printed."""
    command = [str(ROOT / ".venv" / environment / "bin" / "python"), "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
