"""One job of a DAG, as data, and the task that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from textwrap import shorten
from typing import Any

from nightshift.job_operator import JobOperator

LISTED = 120  # characters of a DAG's name in a list


@dataclass(frozen=True)
class Step:
    """One job of a night: what is run, with what, and where.

    All of it that decides what comes out is in the fingerprint of a run: `options` and the run's parameters in
    `params`, but for those named in `not_in_fingerprint`, and the content of `files`.
    """

    module: str
    options: Mapping[str, Any]
    """name -> value; texts may be templates"""
    params: Mapping[str, str] = field(default_factory=dict)
    """option -> the parameter of the run that it is taken from"""
    connections: tuple[str, ...] = ("bottle", "mlflow")
    runtime: str = "jobs"
    files: tuple[str, ...] = ()
    """files of the checkout that the job reads, as paths in it"""
    not_in_fingerprint: frozenset[str] = frozenset()
    """options that say how or for whom, not what: the same data with another value is nothing new"""
    gpus: int = 1
    timeout: timedelta | None = None


def task(task_id: str, step: Step, **arguments: Any) -> JobOperator:
    """Return the task that runs a step; `arguments` are those of any operator, and `only_if_param` and `skips`."""
    return JobOperator(
        task_id=task_id,
        module=step.module,
        options=dict(step.options),
        options_from_params=dict(step.params),
        runtime=step.runtime,
        gpus=step.gpus,
        connections=step.connections,
        execution_timeout=step.timeout,
        **arguments,
    )


def listed_name(dag_id: str, description: str) -> str:
    """Return how a DAG is called where Airflow lists it: its list of DAGs has no column for the description.

    The id comes first and whole, so that looking for it finds the DAG.
    """
    return f"{dag_id}: {shorten(description, max(20, LISTED - len(dag_id) - 2), placeholder='…')}"
