"""Where the checkout and the pipeline files are."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Return the checkout: `NIGHTSHIFT_HOME`, else the one that this file lies in."""
    return Path(os.environ.get("NIGHTSHIFT_HOME") or Path(__file__).resolve().parents[3])


def pipelines_folder() -> Path:
    """Return the folder of the pipeline files: `NIGHTSHIFT_PIPELINES`, else `configs/pipelines` of the checkout."""
    return Path(os.environ.get("NIGHTSHIFT_PIPELINES") or home() / "configs" / "pipelines")
