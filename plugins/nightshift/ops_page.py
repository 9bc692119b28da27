"""The page for the person on call, inside Airflow's UI: open failures with what to do, and what is in production.

It asks for a login as Airflow's own pages do. Whatever is away, the rest of the page is shown.
"""
# Without `from __future__ import annotations`: FastAPI reads the annotations of the routes.

import logging
from collections.abc import Callable
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
    failed, failed_note = _or_why_not(open_failures, "PostgreSQL (connection nightshift_database)")
    models, models_note = _or_why_not(production.history, "the model storage (connection nightshift_storage)")
    shown = templates.get_template("ops_page.html").render(
        failures=failed or [], failures_note=failed_note, models=models or {}, models_note=models_note
    )
    return HTMLResponse(shown, headers={"Cache-Control": "no-store"})


@app.get("/failures")
def list_failures() -> list[dict[str, Any]]:
    """Return the open failures."""
    return open_failures()


def open_failures() -> list[dict[str, Any]]:
    """Return the open failures as rows of the page."""
    url = connections.database_url()
    with create_session(scoped=False) as session:
        broken = [Path(name).stem for name in session.scalars(select(ParseImportError.filename)) if name]
    failures.readable_again(url, broken)
    rows = []
    for found in failures.open_failures(url):
        remedy = REMEDIES.get(found.failure.kind, REMEDIES["other"])
        what_to_do = {"title": remedy.title, "remedy": remedy.text}
        rows.append({"occurred_at": found.occurred_at.isoformat(), **vars(found.failure), **what_to_do})
    return rows


def _or_why_not(read: Callable[[], Any], what: str) -> tuple[Any, str]:
    try:
        return read(), ""
    except AWAY as error:
        log.warning("the page could not read %s: %s", what, error)
        reason = str(error) if isinstance(error, JobMisconfigured) else f"{type(error).__name__}, see the server's log"
        return None, f"Nothing can be read from {what} now: {reason}."
