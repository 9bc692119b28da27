"""Options of training jobs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Epochs = Annotated[int, Field(ge=1, le=1000, title="Epochs")]
BatchSize = Annotated[int, Field(ge=1, le=4096, title="Batch size")]
Gpus = Annotated[int, Field(ge=1, le=16, title="GPUs")]
InputSize = Annotated[int, Field(ge=32, le=4096, multiple_of=32, title="Input size")]
DetectorTask = Literal["detect", "segment"]
