"""The page for the person on call, inside Airflow's UI: open failures with what to do, and what is in production.

It asks for a login as Airflow's own pages do. Whatever is away, the rest of the page is shown.
"""
# Without `from __future__ import annotations`: FastAPI reads the annotations of the routes.

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg2
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
from airflow.api_fastapi.core_api.security import requires_access_view
from airflow.models.errors import ParseImportError
from airflow.sdk.exceptions import AirflowException
from airflow.utils.session import create_session
from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader
from sqlalchemy import select

from nightshift import connections, failures, production
from nightshift.errors import JobMisconfigured
from nightshift.failures import Failure, OpenFailure
from nightshift.remedies import REMEDIES

log = logging.getLogger(__name__)
ROUTE = "/nightshift"
AWAY = (psycopg2.Error, httpx.HTTPError, AirflowException, KeyError, ValueError)
templates = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
app = FastAPI(
    title="Nightshift",
    dependencies=[Depends(requires_access_view(AccessView.JOBS))],
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
)


@app.get("/", response_class=HTMLResponse)
def page() -> HTMLResponse:
    """Show what failed and what to do about it, and which version was in production when."""
    failed, failed_note = _or_why_not(
        lambda: failures.open_failures(connections.database_url()), "PostgreSQL (connection nightshift_database)"
    )
    models, models_note = _or_why_not(production.history, "the model storage (connection nightshift_storage)")
    shown = templates.get_template("ops_page.html").render(
        failures=as_rows([*unreadable_pipelines(), *(failed or [])]),
        failures_note=failed_note,
        models=models or {},
        models_note=models_note,
    )
    return HTMLResponse(shown, headers={"Cache-Control": "no-store"})


@app.get("/failures")
def list_failures() -> list[dict[str, Any]]:
    """Return the open failures."""
    return open_failures()


def open_failures() -> list[dict[str, Any]]:
    """Return the open failures as rows of the page: the DAG files that Airflow cannot read, then what failed."""
    return as_rows([*unreadable_pipelines(), *failures.open_failures(connections.database_url())])


def as_rows(open_failures: list[OpenFailure]) -> list[dict[str, Any]]:
    """Return failures with the remedy of their kind."""
    rows = []
    for found in open_failures:
        remedy = REMEDIES.get(found.failure.kind, REMEDIES["other"])
        what_to_do = {"title": remedy.title, "remedy": remedy.text}
        rows.append({"occurred_at": found.occurred_at.isoformat(), **vars(found.failure), **what_to_do})
    return rows


def unreadable_pipelines() -> list[OpenFailure]:
    """Return the DAG files that cannot be read, from Airflow's own table of them."""
    with create_session(scoped=False) as session:
        return [
            OpenFailure(
                Failure(
                    "import_error",
                    Path(error.filename or "").stem,
                    failures.import_error_message(error.stacktrace or ""),
                ),
                error.timestamp or datetime.now(UTC),
            )
            for error in session.scalars(select(ParseImportError).order_by(ParseImportError.timestamp.desc()))
        ]


def _or_why_not(read: Callable[[], Any], what: str) -> tuple[Any, str]:
    try:
        return read(), ""
    except AWAY as error:
        log.warning("the page could not read %s: %s", what, error)
        reason = str(error) if isinstance(error, JobMisconfigured) else f"{type(error).__name__}, see the server's log"
        return None, f"Nothing can be read from {what} now: {reason}."
