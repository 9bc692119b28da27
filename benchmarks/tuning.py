"""What `tune_model` gains on this machine's CPU Triton: the settings that it finds against the default, in turns.

.venv/jobs/bin/python -m benchmarks.tuning --architecture resnet18 --side 224
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.conversion import MAKE_PICTURES, ROOT, python
from conversion_jobs.onnx.graph import interface, read_graph
from conversion_jobs.triton.served_model import Reference
from conversion_jobs.triton.temporary_server import temporary_triton
from conversion_jobs.triton.tuning import Measurement, Tuning
from conversion_jobs.tune_model import Arguments, Bench
from jobkit.bottle import FolderBottle
from jobkit.experiment import Experiment

MAKE_CLASSIFIER = """
import sys, torch
from jobkit.classifier import Classifier
torch.manual_seed(0)
torch.save(Classifier(sys.argv[2], 10, 3).state_dict(), sys.argv[1])
"""
SERVER = [sys.executable, "-m", "local.tritonserver"]


def main() -> None:
    """Convert, tune, measure the chosen settings against the default in turns; print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=4, help="of one measurement")
    parser.add_argument("--budget", type=float, default=300, help="seconds of the search")
    parser.add_argument("--limit_ms", type=float, default=5000, help="99th percentile at most; the machine may be busy")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "pictures").mkdir()
        python("jobs", MAKE_PICTURES, folder / "pictures")
        python("jobs", MAKE_CLASSIFIER, folder / "model.pt", options.architecture)
        made = job(
            folder, "import_weights", "--family=classifier", f"--architecture={options.architecture}", "--group=g",
            f"--weights={folder / 'model.pt'}", f"--img_size=[{options.side},{options.side}]",
            f"--labels={','.join(f'c{n}' for n in range(10))}", f"--pictures={folder / 'pictures'}",
        )  # fmt: skip
        experiment = f"--experiment={made['experiment']}"
        job(folder, "export_onnx", experiment)
        job(folder, "verify_onnx", experiment, f"--snapshot_id={made['snapshot_id']}")
        found = job(
            folder, "tune_model", experiment, f"--seconds={options.seconds}", f"--budget={options.budget}",
            f"--server={' '.join(SERVER)}", f"--limit_ms={options.limit_ms}",
        )  # fmt: skip
        bottle = FolderBottle(folder / "bottle")
        tuning = Tuning.model_validate_json(bottle.read(found["tuning"]))
        for point in sorted(tuning.points, key=lambda point: point.score(tuning.limit_ms), reverse=True):
            shown = [f"{one.throughput:.1f}/s p99 {one.p99:.0f}" for one in (*point.measured, *point.confirmed)]
            print(point.settings, *shown, point.problem or "")
        compare(Experiment(made["experiment"]), bottle, tuning, options.seconds, options.turns, folder)


def compare(
    experiment: Experiment, bottle: FolderBottle, tuning: Tuning, seconds: float, turns: int, folder: Path
) -> None:
    """Measure default and chosen settings by turns; print both and the ratio."""
    arguments = Arguments(experiment=experiment.folder, seconds=seconds)
    onnx = bottle.local(experiment.onnx)
    both: list[list[Measurement]] = [[], []]
    with temporary_triton(SERVER, folder / "triton.log") as control:
        bench = Bench(
            arguments, control, "tuning", onnx, interface(read_graph(onnx)),
            Reference(bottle.local(experiment.reference)),
        )  # fmt: skip
        for _ in range(turns):
            for settings, into in zip((tuning.points[0].settings, tuning.chosen), both, strict=True):
                one = bench.measure(settings)
                if isinstance(one, str):
                    sys.exit(f"{settings}: {one}")
                into.append(one)
    for name, measured in zip(("default", "tuned"), both, strict=True):
        throughput = statistics.median(one.throughput for one in measured)
        p99 = statistics.median(one.p99 for one in measured)
        print(f"{name}: {throughput:.1f} requests a second, p99 {p99:.0f} ms")
    ratios = sorted(after.throughput / before.throughput for before, after in zip(*both, strict=True))
    loads = [one.machine_load for one in (*both[0], *both[1])]
    print(f"chosen: {tuning.chosen}")
    print(f"ratio: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f} over {turns} turns)")
    print(f"load {min(loads):.0f} to {max(loads):.0f}; {json.dumps(tuning.machine)}")


def job(folder: Path, name: str, *arguments: str) -> dict[str, Any]:
    """Run a conversion job as a user does; return its result."""
    folders = {"NIGHTSHIFT_BOTTLE": str(folder / "bottle"), "NIGHTSHIFT_JOB_DIR": str(folder / name)}
    code = f"import runpy; runpy.run_module('conversion_jobs.{name}', run_name='__main__', alter_sys=True)"
    python("jobs", code, *arguments, **folders)
    result: dict[str, Any] = json.loads((folder / name / "result.json").read_text())["result"]
    return result


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
