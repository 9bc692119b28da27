"""The key of a task instance of Airflow: a job is found again by it, and writes its MLflow run under it."""

from __future__ import annotations

import dataclasses
import json

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

VARIABLE = "NIGHTSHIFT_TASK_INSTANCE"
"""The environment variable that gives a job its key, as JSON."""
TRIGGERED_BY = "NIGHTSHIFT_TRIGGERED_BY"
"""The environment variable that tells a job which user of Airflow started its run; not set where a schedule did."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TaskInstanceKey:
    """One try of one task of one run."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    try_number: int = 1

    @property
    def task(self) -> str:
        """The task, with its index where it is mapped."""
        return self.task_id if self.map_index < 0 else f"{self.task_id}[{self.map_index}]"

    def to_dict(self) -> dict[str, str | int]:
        """Return the five fields."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Return the value of `NIGHTSHIFT_TASK_INSTANCE`."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> TaskInstanceKey:
        """Return the key in `text`.

        Raises:
            ValueError: it is not valid.
        """
        return TypeAdapter(cls).validate_json(text)
