"""What a task tells its job about the tasks before it: templates, which a task renders just before it runs."""

from __future__ import annotations

from typing import Any

# The state of each task so far, as a JSON object.
TASK_STATES = "{{ ti.get_task_states(dag.dag_id, run_ids=[run_id])[run_id] | tojson }}"


def output_of(task_id: str, field: str) -> str:
    """Return a template of one field, a string, of what a task returned; without that field the task fails.

    An XComArg would do the same, and draw an arrow from each task to every later one that uses its result.
    """
    return f"{{{{ ti.xcom_pull('{task_id}')['{field}'] }}}}"


def stopped_by(ti: Any) -> dict[str, str]:
    """Return `outcome` and `reason` of the task that stopped the run early; empty where none did."""
    for task_id in ("deploy_model", "gate", "pull_dataset"):
        found: dict[str, str] | None = (ti.xcom_pull(task_id) or {}).get("stop_here")
        if found:
            return found
    return {}
