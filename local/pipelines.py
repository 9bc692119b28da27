"""The pipeline files as `make run` needs them: which there are, and under which name a pipeline's model is served."""

from __future__ import annotations

import os
from pathlib import Path

from local.settings import ROOT, LocalStackError
from nightshift_common.names import NAME_RULE, is_name
from nightshift_common.yaml_file import ConfigFile, ConfigFileError


def served_model(pipeline: str) -> str:
    """Return the `publish.model_name` of a pipeline's file; Airflow checks everything else in it.

    Raises:
        LocalStackError: there is no such pipeline, or its file names no model.
    """
    folder = Path(os.environ.get("NIGHTSHIFT_PIPELINES") or ROOT / "configs" / "pipelines")
    known = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if pipeline not in known:
        raise LocalStackError(f"{folder} has no pipeline {pipeline!r}; there is: {', '.join(known) or 'none'}")
    try:
        content = ConfigFile.read(known[pipeline]).content
    except ConfigFileError as error:
        raise LocalStackError(str(error)) from error
    publish = content.get("publish") if isinstance(content, dict) else None
    name = publish.get("model_name") if isinstance(publish, dict) else None
    if not isinstance(name, str) or not is_name(name):
        raise LocalStackError(f"{known[pipeline]}: publish.model_name is {name!r}, not a name: {NAME_RULE}")
    return name
