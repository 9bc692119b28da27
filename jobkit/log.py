"""Log lines of a job: JSON for Airflow, plain text for a person at a terminal.

Each line is complete in itself, ends with `\\n` and is flushed, so that it shows in the Airflow UI at once.
A line's keys: `time` (UTC, ISO 8601), `level`, `logger`, `message`, and the fields given as `extra`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return `record` as one line of JSON; an exception stands in `exception`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure(stream: Any = None) -> None:
    """Send every log record to `stream` (standard output): text at a terminal, JSON elsewhere.

    `NIGHTSHIFT_LOG_FORMAT` (`json` or `text`) overrides the choice; `NIGHTSHIFT_LOG_LEVEL` sets the level.
    """
    stream = stream or sys.stdout
    chosen = os.environ.get("NIGHTSHIFT_LOG_FORMAT") or ("text" if stream.isatty() else "json")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        JsonFormatter()
        if chosen == "json"
        else logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    )
    logging.basicConfig(level=os.environ.get("NIGHTSHIFT_LOG_LEVEL", "INFO"), handlers=[handler], force=True)
    for noisy in ("botocore", "urllib3", "httpx", "httpcore", "PIL", "matplotlib", "fsspec", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.captureWarnings(True)
