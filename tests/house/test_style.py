"""The linters and type checkers that the house agreed on, run as tests so that `make test` is the only gate."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv" / "tools" / "bin"


def check(*command: str, **environment: str) -> None:
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    check("ruff", "check", "--no-cache", ".")


def test_the_code_is_formatted() -> None:
    check("ruff", "format", "--no-cache", "--check", ".")


CHECKED = {
    "jobs": (
        *("nightshift_common", "jobkit", "training_jobs", "conversion_jobs", "convertation", "cls", "main.py"),
        *("benchmarks/[aegt]*.py", "benchmarks/class*.py"),
    ),
    "services": ("nightshift_common", "services", "local", "docker/*.py", "benchmarks/[mr]*.py"),
    "airflow": ("plugins", "dags", "benchmarks/con*.py"),
}
"""Environment -> what runs in it; one call of mypy each, whose cache makes the next one quick."""
PATHS = {"jobs": "", "services": "", "airflow": "plugins"}  # what the code itself puts on the path


@pytest.mark.parametrize("environment", CHECKED)
def test_mypy_strict_finds_nothing(environment: str) -> None:
    python = ROOT / ".venv" / environment / "bin" / "python"
    check(
        *("mypy", "--strict", f"--python-executable={python}", f"--cache-dir={ROOT}/.mypy_cache/{environment}"),
        *(str(path.relative_to(ROOT)) for pattern in CHECKED[environment] for path in sorted(ROOT.glob(pattern))),
        MYPYPATH=PATHS[environment],
    )


def test_every_package_and_benchmark_is_checked() -> None:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ours = {Path(name) for name in listed.split() if not name.startswith("tests/") and "/" in name}
    checked = {path.relative_to(ROOT) for patterns in CHECKED.values() for p in patterns for path in ROOT.glob(p)}
    assert ours and not {path for path in ours if not checked & {path, *path.parents}}


def test_no_committed_file_names_a_download_address() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    hosts = [
        "py" + "pi.org",
        "python" + "hosted.org",
        "download.py" + "torch.org",
        "npm" + "js.org",
        "deb." + "debian.org",
    ]
    wrong = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and path.stat().st_size < 1_000_000:
            text = path.read_text(errors="ignore")
            wrong += [f"{name} names {host}" for host in hosts if host in text]
    assert not wrong, "\n".join(wrong)
