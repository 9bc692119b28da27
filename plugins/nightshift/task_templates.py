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


def sentences_of(task_id: str, field: str) -> str:
    """Return a template of one field, a list of sentences, of what a task returned: one text."""
    return f"{{{{ ti.xcom_pull('{task_id}')['{field}'] | join('; ') }}}}"


def output_if_any(task_id: str, field: str) -> str:
    """Return a template of one field, a string, of what a task returned; empty where the task did not run."""
    return f"{{{{ (ti.xcom_pull('{task_id}') or {{}}).get('{field}') or '' }}}}"


def stopped_by(ti: Any, dag: Any) -> dict[str, str]:
    """Return `outcome` and `reason` of the task that stopped the run early, whichever it was; empty where none did."""
    for task in reversed(list(dag.topological_sort())):
        result = ti.xcom_pull(task.task_id) if task.task_id != ti.task_id else None
        found: dict[str, str] | None = result.get("stop_here") if isinstance(result, dict) else None
        if found:
            return found
    return {}
