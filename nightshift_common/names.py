"""Names that stand in paths, in Triton, in MLflow and in addresses: one rule, and a narrower one for DAGs."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import StringConstraints

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
NAME_RULE = "letters, digits, '_', '-' and '.', at most 100, beginning with a letter or a digit"
PIPELINE_PATTERN = r"^[a-z][a-z0-9_]{0,49}$"
PIPELINE_RULE = "lower-case letters, digits and '_', at most 50, beginning with a letter"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""Of a group, an experiment, a model, a picset."""
GroupName = Name
ModelName = Name


def is_name(text: str) -> bool:
    """Whether `text` can stand in a path, a Triton model name and an MLflow name."""
    return re.fullmatch(NAME_PATTERN[1:-1], text) is not None


def is_pipeline_name(text: str) -> bool:
    """Whether a pipeline can be called `text`: its DAG and its Python module are named after it."""
    return re.fullmatch(PIPELINE_PATTERN[1:-1], text) is not None
