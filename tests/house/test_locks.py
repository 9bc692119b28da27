"""Every package that is installed has hashes in a lock, and no lock says where it is downloaded."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from local.bootstrap import ENVIRONMENTS, LOCKED_CUDA, WITHOUT_DEPENDENCIES
from local.lock import ORDER

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
INPUTS = {"detection-overrides.txt"}  # goes into a lock
LOCKS = sorted(path for path in REQUIREMENTS.glob("*.txt") if path.name not in INPUTS)


def requirements(lock: Path) -> dict[str, list[str]]:
    """Return the hashes of each requirement of a lock."""
    joined = lock.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]
    return {line.split(" ", 1)[0]: re.findall(r"--hash=(\S+)", line) for line in lines}


def test_every_lock_is_one_that_make_lock_makes() -> None:
    assert {path.stem for path in LOCKS} == set(ORDER)
    assert {
        *ENVIRONMENTS,
        f"torch-{LOCKED_CUDA}",
        *(f"{name}-without-dependencies" for name in WITHOUT_DEPENDENCIES),
    } <= set(ORDER)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_requirement_is_one_version_with_hashes_and_without_an_address(lock: Path) -> None:
    found = requirements(lock)
    assert found
    for name, hashes in found.items():
        assert re.fullmatch(r"[a-z0-9-]+(\[[a-z0-9,-]+\])?==[^\s;]+", name), f"{lock.name}: {name}"
        assert hashes, f"{lock.name}: {name} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), f"{lock.name}: {name}"
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links", lock.read_text()), lock.name


def test_a_package_is_the_same_in_all_locks_of_an_environment() -> None:
    together = [
        ("jobs", "jobs-test", "jobs-gpu", "jobs-without-dependencies", f"torch-{LOCKED_CUDA}"),
        ("detection", "detection-test", f"torch-{LOCKED_CUDA}"),
        ("services", "services-test"), ("airflow", "airflow-test"), ("tools", "uv", "sbom"),
    ]  # fmt: skip
    for names in together:
        versions: dict[str, str] = {}
        for name in names:
            for requirement in requirements(REQUIREMENTS / f"{name}.txt"):
                package, version = re.split(r"(?:\[.*\])?==", requirement)
                assert versions.setdefault(package, version) == version, f"{name}.txt: {package}"


def test_nothing_is_installed_past_the_locks() -> None:
    """Each command that installs a package with pip or uv asks for hashes; local/bootstrap.py is tested by itself."""
    listed = subprocess.run(
        ["git", "ls-files", "docker", "local", ".ci", ".github", "Makefile", "convertation"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    wrong = [
        f"{name}: {line.strip()}"
        for name in listed
        if name != "local/bootstrap.py"
        for line in (ROOT / name).read_text(errors="ignore").splitlines()
        if re.search(r"\b(uv )?pip3? install\b", line) and "--require-hashes" not in line
    ]
    assert not wrong, wrong
