"""How long a newcomer waits: fresh clone to served model, the second run, Airflow's share, each job's start.

    python3.11 -m benchmarks.retraining            # needs Python 3.11 and git; makes a clone in a temporary folder

Prints one JSON object. Whole-process wall times on the machine as it is: close other programs first.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
JOBS = (
    "training_jobs.pull_dataset",
    "training_jobs.train_classifier",
    "training_jobs.evaluate",
    "training_jobs.gate",
    "conversion_jobs.export_onnx",
    "conversion_jobs.verify_onnx",
    "conversion_jobs.package_model",
    "conversion_jobs.publish_model",
    "conversion_jobs.deploy_model",
    "training_jobs.report",
)


def main() -> None:
    """Clone, install, run twice, and measure each step."""
    with tempfile.TemporaryDirectory(prefix="nightshift-benchmark-") as scratch:
        clone = Path(scratch) / "nightshift"
        seconds: dict[str, float] = {}
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        seconds["install"] = timed(
            clone, sys.executable, "-m", "local.bootstrap", "services", "airflow", "jobs", "triton"
        )
        seconds["first run"] = timed(clone, "make", f"PYTHON={sys.executable}", "run", "ARGS=--once")
        tasks = job_times(clone)
        seconds["second run (nothing new)"] = timed(clone, "make", f"PYTHON={sys.executable}", "run", "ARGS=--once")
        print(json.dumps({"seconds": seconds, **tasks, "seconds to start": job_starts(clone)}, indent=2))


def timed(clone: Path, *command: str) -> float:
    """Run a command in the clone; return its wall seconds."""
    started = time.monotonic()
    subprocess.run(command, cwd=clone, check=True, stdin=subprocess.DEVNULL)
    return round(time.monotonic() - started, 2)


def job_times(clone: Path) -> dict[str, object]:
    """Return the wall seconds of each job of the run, and what Airflow took beside them, a task.

    A job's time is from its process's start to its exit, as its folder tells; the run's is from the start of the
    first job to the exit of the last one. What is left is Airflow's: scheduling, starting the task, its XComs.
    """
    jobs = {}
    for recorded in (clone / ".nightshift" / "jobs").glob("retrain_digits/*/*/001/process.json"):
        jobs[recorded.parts[-3]] = (recorded.stat().st_mtime, (recorded.parent / "exit_code").stat().st_mtime)
    wall = max(end for _, end in jobs.values()) - min(start for start, _ in jobs.values())
    busy = sum(end - start for start, end in jobs.values())
    return {
        "job wall seconds": {name: round(end - start, 2) for name, (start, end) in sorted(jobs.items())},
        "Airflow's seconds a task": round((wall - busy) / (len(jobs) - 1), 2),
    }


def job_starts(clone: Path) -> dict[str, float]:
    """Return how long `--help` takes, in seconds: Python, imports, parsing. Heavy libraries load at first use."""
    python = clone / ".venv" / "jobs" / "bin" / "python"
    return {module: timed(clone, "sh", "-c", f"{python} -m {module} --help > /dev/null") for module in JOBS}


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
