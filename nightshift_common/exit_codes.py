"""Exit codes of a job: what it tells Airflow by how it ends.

| exit code | meaning | what Airflow does |
|---|---|---|
| 0 | done; `result.json` is complete | pushes the result, goes on |
| 2 | the configuration or the arguments are wrong | fails at once, no retry |
| 3 | the input data failed validation | fails at once, no retry |
| 75 | something outside failed for now (75 is EX_TEMPFAIL of sysexits.h) | retries with back-off |
| other | crash, out of memory, killed | retries; training resumes from its checkpoint |
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of a job."""

    DONE = 0
    CRASHED = 1
    CONFIGURATION = 2
    DATA_VALIDATION = 3
    TRANSIENT = 75
