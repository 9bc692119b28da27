"""What every section of the classifier's configuration file is."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A mapping in the configuration file: unknown keys and wrong types are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
