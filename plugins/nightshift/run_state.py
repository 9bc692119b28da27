"""What the last task of a run tells its job about the tasks before it."""

from __future__ import annotations

from typing import Any

# The state of each task so far, as a JSON object.
TASK_STATES = "{{ ti.get_task_states(dag.dag_id, run_ids=[run_id])[run_id] | tojson }}"


def stopped_by(ti: Any) -> dict[str, str]:
    """Return `outcome` and `reason` of the task that stopped the run early; empty where none did."""
    for task_id in ("gate", "pull_dataset"):
        found: dict[str, str] | None = (ti.xcom_pull(task_id) or {}).get("stop_here")
        if found:
            return found
    return {}
