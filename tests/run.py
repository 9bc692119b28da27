"""Runs the tests that this machine can run, each part in its environment; the last line gives the totals.

python3.11 -m tests.run                  # all that a person waits for
python3.11 -m tests.run --all            # the slow ones, too (marked `slow`)
python3.11 -m tests.run jobs services    # some parts
python3.11 -m tests.run jobs -- -k gate  # what follows -- goes to pytest
"""

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
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
    apart: tuple[str, ...] = ()
    """Those of the folders that take as long as all others: they run beside them, in a process of their own."""

    def runs(self) -> list[tuple[str, ...]]:
        """Return the folders of each process."""
        return [folders for folders in (self.apart, tuple(f for f in self.folders if f not in self.apart)) if folders]


@dataclass
class Totals:
    """How the tests of a part ended."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0


JOBS = ("tests/jobkit", "tests/training_jobs", "tests/conversion_jobs", "tests/compatibility")
PARTS = (  # what takes longest starts first
    Part("e2e", "services", ("tests/e2e",)),
    Part("jobs", "jobs", JOBS, apart=("tests/conversion_jobs",)),
    Part("airflow", "airflow", ("tests/plugins", "tests/dags")),
    Part("services", "services", ("tests/nightshift_common", "tests/services", "tests/local")),
    Part("detection", "detection", ("tests/detection",)),
    # The shared fixtures need libraries that the linters' environment does without.
    Part("house", "tools", ("tests/house",), ("--confcutdir=tests/house",)),
    Part("containers", "airflow", ("tests/containers",)),  # skipped where no container engine answers
    Part("newcomer", "services", ("tests/newcomer",)),
)
ALONE = ("containers", "newcomer")  # last: they need the machine
ON_REQUEST = ("newcomer",)  # make test-all PART=newcomer
AS_USERS_HAVE_IT = ("e2e", "containers", "newcomer")  # the others get one thread a library: they share the cores


def main() -> None:
    """Run the parts that the command line names, print each one's output as it ends, exit 1 on any failure."""
    arguments = [*sys.argv[1:], "--"]
    names, extra = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 : -1]
    if "--all" in names:
        names.remove("--all")
    else:
        extra = ["-m", "not slow", *extra]
    if unknown := set(names) - {part.name for part in PARTS}:
        sys.exit(f"there is no part {', '.join(sorted(unknown))}; there is: {', '.join(part.name for part in PARTS)}")
    chosen = [part for part in PARTS if part.name in names or (not names and part.name not in ON_REQUEST)]
    started = time.monotonic()
    # One more than there are cores, since much of it waits: for servers, processes, the scheduler.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) + 1) as pool:
        beside = [(part, folders) for part in chosen if part.name not in ALONE for folders in part.runs()]
        totals = list(pool.map(lambda each: run(*each, extra), beside))
    totals += [run(part, part.folders, extra) for part in chosen if part.name in ALONE]
    passed, failed, skipped = (sum(getattr(t, name) for t in totals) for name in ("passed", "failed", "skipped"))
    print(f"\nall parts took {time.monotonic() - started:.0f} s")
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    sys.exit(1 if failed or not passed else 0)


def run(part: Part, folders: Sequence[str], extra: list[str]) -> Totals:
    """Run folders of a part; a runner that itself breaks counts as one failure."""
    started = time.monotonic()
    folders = [folder for folder in folders if any((ROOT / folder).rglob("test_*.py"))]
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
            env=environment(part),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        totals = read_report(report)
    if done.returncode not in (0, 1, 5) or (done.returncode == 1 and not totals.failed):
        totals.failed += 1
    name = part.name if len(part.runs()) == 1 else f"{part.name}: {' '.join(folders)}"
    print(f"=== {name} ({time.monotonic() - started:.0f} s)\n{done.stdout.rstrip()}", flush=True)
    return totals


def environment(part: Part) -> dict[str, str]:
    """Return the variables that the tests of a part see."""
    one_thread = {} if part.name in AS_USERS_HAVE_IT else {"OMP_NUM_THREADS": "1"}
    return {**one_thread, **os.environ, "NIGHTSHIFT_LOG_FORMAT": ""}


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
