"""The page for the person on call, inside Airflow's UI: open failures with what to do, what is in production, and a
button for the way back.

It asks for a login as Airflow's own pages do; to roll a model back one needs the right to edit the DAG that makes it.
Whatever is away, the rest of the page is shown.

A form is taken from this page only. It has to carry the token that the page had when its user opened it: the user's id,
signed with the key of Airflow's log-in tokens, which no worker has, and good for 12 hours. Where a browser also says by
`Origin` from which page a form was sent, that has to be this one. The token alone would do, since no other page can
read it; the origin is there already, and holds where a token was copied.
"""
# Without `from __future__ import annotations`: FastAPI reads the annotations of the routes.

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import psycopg2
from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagDetails
from airflow.api_fastapi.auth.tokens import JWTGenerator, JWTValidator, get_sig_validation_args, get_signing_args
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_view
from airflow.models.dag import DagModel
from airflow.models.errors import ParseImportError
from airflow.models.xcom import XComModel
from airflow.sdk.exceptions import AirflowException
from airflow.utils.session import create_session
from fastapi import Depends, FastAPI, Form, Header, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader
from jwt import InvalidTokenError
from sqlalchemy import func, select

from nightshift import connections
from nightshift.errors import JobConfigurationError
from nightshift.failures import store
from nightshift.failures.remedies import REMEDIES
from nightshift.failures.store import Failure, OpenFailure
from nightshift.operations import production
from nightshift_common.model_storage_client import StorageRefused, StorageUnavailable
from nightshift_common.names import NAME_RULE, is_name

log = logging.getLogger(__name__)
ROUTE = "/nightshift"
MAX_PICTURE = 16 << 20
TOKEN_SECONDS = 12 * 3600
TOKEN_AUDIENCE = "nightshift.operations.page"  # noqa: S105 - a log-in token is no form's, and the other way round
AWAY = (psycopg2.Error, StorageUnavailable, StorageRefused, AirflowException, KeyError, ValueError)
templates = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
app = FastAPI(
    title="Nightshift",
    dependencies=[Depends(requires_access_view(AccessView.JOBS))],
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
)


@app.get("/", response_class=HTMLResponse)
def page(user: GetUserDep, model: str = "", at: str = "") -> HTMLResponse:
    """Show what failed and what to do about it, and which version is in production, or was at a time (UTC)."""
    if model and not is_name(model):
        return _page(user, note=_no_name("model", model), status=422)
    return _page(user, model, at)


@app.post("/rollback", response_class=HTMLResponse)
def roll_back(
    request: Request,
    user: GetUserDep,
    model: Annotated[str, Form()],
    from_version: Annotated[str, Form()],
    token: Annotated[str, Form()] = "",
    reason: Annotated[str, Form()] = "",
    pin: Annotated[bool, Form()] = False,
) -> Response:
    """Bring the version before `from_version` into production again."""
    _may_change(request, user, token, model=model, version=from_version)
    return _done(user, lambda: production.roll_back(model, from_version, pin, reason, user.get_name()))


@app.post("/unpin", response_class=HTMLResponse)
def unpin(
    request: Request, user: GetUserDep, model: Annotated[str, Form()], token: Annotated[str, Form()] = ""
) -> Response:
    """Let other versions come into production again."""
    _may_change(request, user, token, model=model)
    return _done(user, lambda: production.unpin(model, user.get_name()))


@app.post("/try", response_class=HTMLResponse)
async def try_picture(
    request: Request,
    user: GetUserDep,
    model: str,
    x_nightshift_token: Annotated[str, Header()] = "",
) -> HTMLResponse:
    """Show what the champion and the version before it say of the picture in the body; who sees the page may try."""
    if not is_name(model):
        return _answers(problem=_no_name("model", model), status=422)
    await run_in_threadpool(_is_from_this_page, request, user, x_nightshift_token)
    picture = bytearray()
    async for part in request.stream():
        picture += part
        if len(picture) > MAX_PICTURE:
            return _answers(problem=f"The picture is larger than {MAX_PICTURE >> 20} MiB.", status=413)
    if not picture:
        return _answers(problem="The file is empty.", status=422)
    try:
        found = await run_in_threadpool(production.try_picture, model, bytes(picture))
    except StorageRefused as error:
        return _answers(problem=f"{error.reason}.", status=422)
    except AWAY as error:
        log.warning("the picture was not tried: %s", error)
        reason = str(error) if isinstance(error, JobConfigurationError | StorageUnavailable) else type(error).__name__
        return _answers(problem=f"No answer for now: {reason}.", status=503)
    return _answers(found)


def _answers(found: Sequence[Mapping[str, Any]] = (), problem: str = "", status: int = 200) -> HTMLResponse:
    shown = templates.get_template("answers.html").render(answers=found, problem=problem)
    return HTMLResponse(shown, status, headers={"Cache-Control": "no-store"})


def _may_change(request: Request, user: BaseUser, token: str, model: str, version: str | None = None) -> None:
    """Raise 422 for what is no name, and 403 unless the form is of this page and the user may edit the model's DAG.

    The names come first: rights are looked up by the model's name, so it has to be one, and mean one model everywhere.
    """
    for what, name in (("model", model), ("version", version)):
        if name is not None and not is_name(name):
            raise HTTPException(422, _no_name(what, name))
    _is_from_this_page(request, user, token)
    dag_id = production.dags_of_models().get(model, production.CONVERSION)
    if not get_auth_manager().is_authorized_dag(method="PUT", details=DagDetails(id=dag_id), user=user):
        raise HTTPException(403, f"to change what is in production for {model} takes the right to edit {dag_id}")


def _is_from_this_page(request: Request, user: BaseUser, token: str) -> None:
    """Raise 403 unless what was sent is of this page, as this user opened it."""
    origin = request.headers.get("origin")  # a browser sends it with every form, and no script can change it
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, f"the form was sent from another page, {origin}")
    if not _is_token_of(user, token):
        raise HTTPException(403, "the form is not of this page as you opened it, or older than 12 hours: open it again")


def _no_name(what: str, text: str) -> str:
    return f"{text[:100]!r} cannot be the name of a {what}: {NAME_RULE}"


def _token_of(user: BaseUser) -> str:
    generator = JWTGenerator(**get_signing_args(), valid_for=TOKEN_SECONDS, audience=TOKEN_AUDIENCE)
    return generator.generate({"sub": str(user.get_id())})


def _is_token_of(user: BaseUser, token: str) -> bool:
    validator = JWTValidator(**get_sig_validation_args(), audience=TOKEN_AUDIENCE)
    try:
        return bool(validator.validated_claims(token).get("sub") == str(user.get_id()))
    except InvalidTokenError:
        return False


def _done(user: BaseUser, change: Callable[[], Any]) -> Response:
    """Make a change and go back to the page, or show why it was not made."""
    try:
        change()
    except AWAY as error:
        return _page(
            user, note=f"Nothing was changed: {error}", status=409 if isinstance(error, StorageRefused) else 503
        )
    return RedirectResponse("./", status_code=303)


def _page(user: BaseUser, model: str = "", at: str = "", note: str = "", status: int = 200) -> HTMLResponse:
    failed, failed_note = _or_why_not(
        lambda: store.open_failures(connections.operations_url()), "PostgreSQL (connection nightshift_operations)"
    )
    models, models_note = _or_why_not(
        lambda: production.models(model, f"{at}Z" if at else ""),
        "the model storage (connection nightshift_storage_airflow)",
    )
    shown = templates.get_template("ops_page.html").render(
        failures=as_rows([*unreadable_pipelines(), *(failed or [])]), failures_note=failed_note,
        left_out=pictures_left_out(),
        models=models or [], models_note=models_note, model=model, at=at, note=note,
        token=_token_of(user), max_picture=MAX_PICTURE,
    )  # fmt: skip
    return HTMLResponse(shown, status, headers={"Cache-Control": "no-store"})


@app.get("/failures")
def list_failures() -> list[dict[str, Any]]:
    """Return the open failures."""
    return open_failures()


def open_failures() -> list[dict[str, Any]]:
    """Return the open failures as rows of the page: the DAG files that Airflow cannot read, then what failed."""
    return as_rows([*unreadable_pipelines(), *store.open_failures(connections.operations_url())])


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
                    store.import_error_message(error.stacktrace or ""),
                ),
                error.timestamp or datetime.now(UTC),
            )
            for error in session.scalars(select(ParseImportError).order_by(ParseImportError.timestamp.desc()))
        ]


def pictures_left_out() -> list[dict[str, str]]:
    """Return what the latest pull of each DAG did not take, in its job's words; none for one that took everything.

    From Airflow's own table of results. Each has `dag_id`, `run_id`, `pulled_at`, `text`.
    """
    is_pull = (XComModel.task_id == "pull_dataset", XComModel.key == "return_value")
    latest = select(XComModel.dag_id, func.max(XComModel.timestamp).label("at")).where(*is_pull)
    newest = latest.group_by(XComModel.dag_id).subquery()
    pulled = (
        select(XComModel)
        .join(newest, (XComModel.dag_id == newest.c.dag_id) & (XComModel.timestamp == newest.c.at))
        .join(DagModel, (DagModel.dag_id == XComModel.dag_id) & ~DagModel.is_stale)
        .where(*is_pull)
        .order_by(XComModel.dag_id)
    )
    with create_session(scoped=False) as session:
        results = [(found, XComModel.deserialize_value(found)) for found in session.scalars(pulled)]
        return [
            {
                "dag_id": found.dag_id,
                "run_id": found.run_id,
                "pulled_at": found.timestamp.isoformat(),
                "text": result["left_out"],
            }
            for found, result in results
            if isinstance(result, dict) and result.get("left_out")
        ]


def _or_why_not(read: Callable[[], Any], what: str) -> tuple[Any, str]:
    try:
        return read(), ""
    except AWAY as error:
        log.warning("the page could not read %s: %s", what, error)
        reason = (
            str(error)
            if isinstance(error, JobConfigurationError | StorageRefused)
            else f"{type(error).__name__}, see the server's log"
        )
        return None, f"Nothing can be read from {what} now: {reason}."
