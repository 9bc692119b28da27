"""Runs every test that this machine can run, each part in its environment; the last line gives the totals.

python3.11 -m tests.run                  # everything
python3.11 -m tests.run jobs services    # some parts
python3.11 -m tests.run jobs -- -k gate  # what follows -- goes to pytest
"""

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Part:
    """Tests that run in one environment."""

    name: str
    environment: str
    folders: tuple[str, ...]
    options: tuple[str, ...] = ()


@dataclass
class Totals:
    """How the tests of a part ended."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0


PARTS = (
    Part("jobs", "jobs", ("tests/jobkit", "tests/training_jobs", "tests/conversion_jobs", "tests/compatibility")),
    Part("detection", "detection", ("tests/detection",)),
    Part("airflow", "airflow", ("tests/plugins", "tests/dags")),
    Part("services", "services", ("tests/nightshift_common", "tests/services", "tests/local")),
    # The shared fixtures need libraries that the linters' environment does without.
    Part("house", "tools", ("tests/house",), ("--confcutdir=tests/house",)),
    Part("e2e", "services", ("tests/e2e",)),
    Part("containers", "airflow", ("tests/containers",)),  # skipped where no container engine answers
)
ALONE = ("e2e", "containers")  # last and one by one: they measure nothing, but they need the machine


def main() -> None:
    """Run the parts that the command line names, print each one's output as it ends, exit 1 on any failure."""
    arguments = sys.argv[1:]
    extra = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
    names = [name for name in arguments[: arguments.index("--")] if name] if "--" in arguments else arguments
    if unknown := set(names) - {part.name for part in PARTS}:
        sys.exit(f"there is no part {', '.join(sorted(unknown))}; there is: {', '.join(part.name for part in PARTS)}")
    chosen = [part for part in PARTS if not names or part.name in names]
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        totals = list(pool.map(lambda part: run(part, extra), [part for part in chosen if part.name not in ALONE]))
    totals += [run(part, extra) for part in chosen if part.name in ALONE]
    passed, failed, skipped = (sum(getattr(t, name) for t in totals) for name in ("passed", "failed", "skipped"))
    print(f"\nall parts took {time.monotonic() - started:.0f} s")
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    sys.exit(1 if failed or not passed else 0)


def run(part: Part, extra: list[str]) -> Totals:
    """Run one part; a part whose runner itself breaks counts as one failure."""
    started = time.monotonic()
    folders = [folder for folder in part.folders if any((ROOT / folder).rglob("test_*.py"))]
    if not folders:
        return Totals()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        python = ROOT / ".venv" / part.environment / "bin" / "python"
        done = subprocess.run(
            [
                str(python),
                "-m",
                "pytest",
                *folders,
                *part.options,
                f"--junitxml={report}",
                "-p",
                "no:cacheprovider",
                f"--basetemp={scratch}/tmp",
                *extra,
            ],
            cwd=ROOT,
            env={**os.environ, "NIGHTSHIFT_LOG_FORMAT": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        totals = read_report(report)
    if done.returncode not in (0, 1, 5) or (done.returncode == 1 and not totals.failed):
        totals.failed += 1
    print(f"=== {part.name} ({time.monotonic() - started:.0f} s)\n{done.stdout.rstrip()}", flush=True)
    return totals


def read_report(path: Path) -> Totals:
    """Return the totals of a JUnit report; none where there is no report."""
    if not path.exists():
        return Totals()
    suites = ElementTree.parse(path).getroot().iter("testsuite")
    totals = Totals()
    for suite in suites:
        count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
        bad = count["failures"] + count["errors"]
        totals.failed += bad
        totals.skipped += count["skipped"]
        totals.passed += count["tests"] - bad - count["skipped"]
    return totals


if __name__ == "__main__":
    main()
