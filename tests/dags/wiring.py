"""What is wrong in the wiring of a DAG, as sentences: asked of the real DAGs, and of DAGs that tests break."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import nodes

JobSchemas = dict[str, dict[str, Any]]
"""Module -> {"arguments": JSON schema of its arguments, "required": [...], "result": fields of its result}."""
CLOSING = "report"


@dataclass(frozen=True)
class Reference:
    """Where a template takes something from: a field of what a task returned; `field` None: all of it."""

    task_id: str
    field: str | None


def templates(task: Any) -> Iterator[tuple[str, str]]:
    """Yield name and text of each templated option of a task."""
    for name, value in [*task.options.items(), ("runtime", task.runtime)]:
        if isinstance(value, str) and "{{" in value:
            yield name, value


def references(template: str) -> Iterator[Reference]:
    """Yield what a template takes from earlier tasks: `ti.xcom_pull('task')['field']` and `(… or {}).get('field')`."""
    tree = jinja2.Environment(autoescape=True).parse(template)
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr == "xcom_pull":
            (task_id,) = (argument.as_const() for argument in call.args)
            yield Reference(task_id, _field_of(tree, call))


def _field_of(tree: nodes.Template, pull: nodes.Call) -> str | None:
    for item in tree.find_all(nodes.Getitem):
        if item.node is pull:
            return str(item.arg.as_const())
    for get in tree.find_all(nodes.Call):
        if isinstance(get.node, nodes.Getattr) and get.node.attr == "get" and pull in get.node.find_all(nodes.Call):
            return str(get.args[0].as_const())
    return None


def parameters(task: Any) -> set[str]:
    """Return the parameters of the run that reach a task's job: wired, or named in a template."""
    named = set(task.options_from_params.values())
    for _, text in templates(task):
        tree = jinja2.Environment(autoescape=True).parse(text)
        for node in tree.find_all(nodes.Getattr):
            if isinstance(node.node, nodes.Name) and node.node.name == "params":
                named.add(node.attr)
    return named


def wrong_references(dag: Any, jobs: JobSchemas) -> list[str]:
    """Return templates that name a task that does not come before, or a field that its job's result does not have."""
    wrong = []
    for task in dag.tasks:
        before = task.get_flat_relative_ids(upstream=True)
        for option, text in templates(task):
            for found in references(text):
                where = f"{dag.dag_id}.{task.task_id}: {option} takes {found.field!r} of {found.task_id!r}"
                if found.task_id not in before:
                    wrong.append(f"{where}, which is no task before it")
                elif found.field not in (fields := jobs[dag.get_task(found.task_id).module]["result"]):
                    wrong.append(f"{where}, whose result has {', '.join(fields)}")
    return wrong


def wrong_options(dag: Any, jobs: JobSchemas) -> list[str]:
    """Return options that a task's job does not have, and those that it needs and does not get."""
    wrong = []
    for task in dag.tasks:
        schema = jobs[task.module]["arguments"]
        given = {*task.options, *task.options_from_params}
        name = f"{dag.dag_id}.{task.task_id} ({task.module})"
        wrong += [f"{name} has no option {option}" for option in given - set(schema["properties"])]
        wrong += [f"{name} is not given {option}" for option in set(schema.get("required", ())) - given]
        wrong += [f"{name}: no parameter {p} in the form" for p in parameters(task) - set(dag.params)]
    return wrong


def outside_the_fingerprint(dag: Any, neutral: frozenset[str]) -> list[str]:
    """Return the parameters of a run that reach its model, or the verdict on it, and do not change its fingerprint."""
    fingerprint: Callable[[dict[str, Any]], str] = dag.user_defined_macros["fingerprint"]
    params = {name: dag.params[name] for name in dag.params}
    gate = dag.get_task("gate")
    deciding = [dag.get_task(name) for name in gate.get_flat_relative_ids(upstream=True)] + [gate]
    wrong = []
    for task in deciding:
        for name in parameters(task) - neutral:
            other = {**params, name: [params[name], "another"]}
            if fingerprint(other) == fingerprint(params):
                wrong.append(f"{dag.dag_id}.{task.task_id}: the parameter {name} is not in the fingerprint")
    return wrong


def wrong_form(dag: Any, jobs: JobSchemas) -> list[str]:
    """Return fields of the form whose choices or bounds are others than those of the options that they go to."""
    wrong = []
    keywords = ("enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
    for task in dag.tasks:
        properties = jobs[task.module]["arguments"]["properties"]
        for option, name in task.options_from_params.items():
            wanted = _flat(properties[option])
            found = _flat(dag.params.get_param(name).schema)
            for keyword in keywords:
                if found.get(keyword) != wanted.get(keyword):
                    wrong.append(
                        f"{dag.dag_id}: {name} has {keyword} {found.get(keyword)}, --{option} of {task.module} has "
                        f"{wanted.get(keyword)}"
                    )
    return wrong


def _flat(schema: dict[str, Any]) -> dict[str, Any]:
    flat = dict(schema)
    for choice in [*schema.get("anyOf", []), *schema.get("allOf", [])]:
        flat |= choice
    if "enum" in flat and {"type": "null"} in schema.get("anyOf", []):
        flat["enum"] = [None, *flat["enum"]]  # a field may be left empty, which a list of choices has to say
    return flat


class _Said:
    """A task instance of the closing task, before which one task alone has said that the run may stop."""

    task_id = CLOSING

    def __init__(self, stopping: str) -> None:
        self.stopping = stopping

    def xcom_pull(self, task_id: str) -> dict[str, Any]:
        stop = {"outcome": "stopped", "reason": self.stopping} if task_id == self.stopping else None
        return {"something": 1, "stop_here": stop}


def forgotten_stops(dag: Any, stopped_by: Callable[[Any, Any], dict[str, str]]) -> list[str]:
    """Return the tasks whose word that the run stops does not reach the record of the run."""
    return [
        f"{dag.dag_id}: nobody asks {task.task_id} whether it stopped the run"
        for task in dag.tasks
        if task.task_id != CLOSING
        and stopped_by(_Said(task.task_id), dag) != {"outcome": "stopped", "reason": task.task_id}
    ]
