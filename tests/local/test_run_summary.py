"""What `make run` says of a run that failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from local import __main__ as command
from local import run
from local.settings import Settings


def write_log(state: Path, run_folder: str, message: str) -> None:
    folder = state / "jobs" / "retrain_shoes" / run_folder / "pull_dataset" / "001"
    folder.mkdir(parents=True)
    lines = [{"message": "120 pictures"}, {"message": message, "event": "error", "exit_code": 3}]
    (folder / "log").write_text("\n".join(map(json.dumps, lines)))


def test_a_task_that_failed_is_told_with_what_its_own_job_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path, "manual__2026-11-21T22%3A31%3A17+00%3A00", "too few pictures: [boots]")
    write_log(tmp_path, "manual__2026-11-22T22%3A31%3A17+00%3A00", "of a later run")
    settings, run_id = Settings(tmp_path), "manual__2026-11-21T22:31:17+00:00"
    failed = {
        task: run._what_went_wrong(run._job_log(settings, "retrain_shoes", task, run_id))
        for task in ("pull_dataset", "train")
    }
    assert failed == {"pull_dataset": "too few pictures: [boots]", "train": ""}
    served = command._summarize(
        settings, run.Retraining("retrain_shoes", run_id, "failed", 3.0, failed=failed), "shoes"
    )
    said = " ".join(capsys.readouterr().out.split())
    assert not served and "pull_dataset: too few pictures: [boots] train http://" in said
