"""Tables that are kept by hand say what the DAGs say."""

from __future__ import annotations

from typing import Any

from airflow.sdk import TaskGroup

from tests.support.documents import quoted, table


def test_the_parts_of_a_night_are_those_of_the_dag(with_plan: Any, of_kinds: dict[str, Any]) -> None:
    parts = {row[0]: quoted(row[1]) for row in table("docs/architecture.md", "part")}
    for dag in (with_plan, of_kinds["classification"]):
        for group in dag.task_group.children.values():
            if isinstance(group, TaskGroup):
                plain = [task for task in group.children if not task.endswith("_onnx") or task in parts["convert"]]
                assert [task for task in parts[str(group.group_display_name)] if task in plain] == plain
    groups = [group for group in with_plan.task_group.children.values() if isinstance(group, TaskGroup)]
    assert list(parts) == [group.group_display_name for group in groups]


def test_the_readme_tells_each_task_of_a_night_in_its_order(of_kinds: dict[str, Any]) -> None:
    told = [quoted(row[0])[0] for row in table("README.md", "task")]
    assert told == [task.task_id for task in of_kinds["classification"].topological_sort()]
