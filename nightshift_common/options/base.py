"""What every class of options is."""

from __future__ import annotations

from pydantic import BaseModel


# Not by `model_config`: a job's arguments inherit options beside settings, whose configuration has more keys.
class Options(BaseModel, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True):
    """Unknown names are errors, infinity and NaN are no numbers; a field's docstring is its description."""
