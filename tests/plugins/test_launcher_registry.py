"""The choice of a launcher: by one name, from one table, with only what that launcher needs."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from nightshift.errors import JobConfigurationError
from nightshift.launchers.process import ProcessLauncher
from nightshift.launchers.registry import LAUNCHERS, launcher

ROOT = Path(__file__).resolve().parents[2]


def test_an_unknown_launcher_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_LAUNCHER", "dokcer")
    with pytest.raises(JobConfigurationError, match="NIGHTSHIFT_LAUNCHER is 'dokcer'; there is: process, docker, kube"):
        launcher()


@pytest.mark.parametrize("name", ["", "process"])
def test_jobs_are_processes_of_the_named_checkout_unless_another_launcher_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_LAUNCHER", name)
    monkeypatch.setenv("NIGHTSHIFT_HOME", str(tmp_path))
    monkeypatch.delenv("NIGHTSHIFT_STATE", raising=False)
    found = launcher()
    assert isinstance(found, ProcessLauncher)
    assert (found.home, found.jobs) == (tmp_path, tmp_path / ".nightshift" / "jobs")
    monkeypatch.setenv("NIGHTSHIFT_STATE", str(tmp_path / "elsewhere"))
    monkeypatch.delenv("NIGHTSHIFT_HOME")
    found = launcher()
    assert isinstance(found, ProcessLauncher)
    assert (found.home, found.jobs) == (ROOT, tmp_path / "elsewhere" / "jobs")


def test_every_name_leads_to_a_launcher_and_a_launcher_without_its_settings_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for place in LAUNCHERS.values():
        assert callable(pkgutil.resolve_name(place))
    monkeypatch.setenv("NIGHTSHIFT_LAUNCHER", "kubernetes")
    with pytest.raises(JobConfigurationError, match=r"no launcher for Kubernetes here.*NIGHTSHIFT_KUBERNETES"):
        launcher()


def test_a_worker_that_runs_processes_loads_no_library_of_the_other_launchers() -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]; import nightshift.job_operator;"
        "from nightshift.launchers.registry import launcher; launcher();"
        "print([name for name in ('docker', 'nightshift.launchers.kubernetes') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT / "plugins"), str(ROOT)], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr
