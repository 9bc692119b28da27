"""A checkout in miniature: real environments and jobkit, and the jobs for tests."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def make_home(folder: Path) -> Path:
    """Return `folder` as a checkout in which `python -m jobs_for_tests.example` is a job."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, target in {
        ".venv": ROOT / ".venv",
        "jobkit": ROOT / "jobkit",
        "nightshift_common": ROOT / "nightshift_common",
        "jobs_for_tests": ROOT / "tests" / "plugins" / "jobs_for_tests",
    }.items():
        (folder / name).symlink_to(target)
    (folder / "configs" / "pipelines").mkdir(parents=True)
    (folder / "dags").mkdir()
    return folder
