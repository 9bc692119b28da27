"""The reference page and --help list every key, and the page is that of the code."""

from __future__ import annotations

import subprocess
import sys

from tests.training_jobs.classifier.test_every_key import CASES, ELSEWHERE
from tests.training_jobs.classifier.test_transforms import CHANGED
from training_jobs.classifier import config_reference


def test_the_page_is_made_from_this_code() -> None:
    assert config_reference.PAGE.read_text() == config_reference.page(), (
        "run python -m training_jobs.classifier.config_reference"
    )


def test_the_schema_by_which_airflow_checks_files_is_made_from_this_code() -> None:
    assert config_reference.SCHEMA.read_text() == config_reference.schema(), (
        "run python -m training_jobs.classifier.config_reference"
    )


def test_every_key_and_transform_is_described() -> None:
    page = config_reference.page()
    assert all(f"| `{key}` |" in page for key in (*CASES, *ELSEWHERE))
    assert all(f"`{name}`" in page for name in CHANGED)
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert all(row[-1].strip(" |") for row in rows), "a key without a meaning"


def test_help_lists_the_keys() -> None:
    command = [sys.executable, "-m", "training_jobs.train_classifier", "--help"]
    shown = subprocess.run(
        command, capture_output=True, text=True, cwd=config_reference.PAGE.parents[1], check=True
    ).stdout
    assert all(key in shown for key in ("--config_filename", "optimizer.backbone_lr", "training.mixing.alpha"))
