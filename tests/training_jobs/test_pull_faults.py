"""What a pull does when the collection service misbehaves: ask again, then 75; nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest
from tenacity import wait_none

from jobkit import job
from jobkit.bottle import FolderBottle
from jobkit.errors import ConfigurationError, TransientError
from nightshift_common.patience import patience
from tests.support import servers
from tests.training_jobs import misbehaving
from tests.training_jobs.misbehaving import Service, half_body, hang, hang_up, page, status
from tests.training_jobs.pictures import items
from training_jobs import pull_dataset
from training_jobs.data import transfer

COUNT = 80


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service with two classes of 40 pictures; the client does not wait between two attempts."""
    monkeypatch.setattr("jobkit.retry.wait_random_exponential", lambda **_: wait_none())
    with misbehaving.service(items(40)) as found:
        monkeypatch.setenv("NIGHTSHIFT_COLLECT_URL", found.url)
        monkeypatch.setenv("NIGHTSHIFT_COLLECT_FILES_URL", f"{found.url}/files/")
        monkeypatch.setenv("NIGHTSHIFT_COLLECT_LOGIN", "someone")
        monkeypatch.setenv("NIGHTSHIFT_COLLECT_PASSWORD", "a secret")
        yield found


@pytest.fixture
def fault(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> misbehaving.Fault:
    """The fault of a test; only where it is that nothing comes does the client not wait long for it."""
    found: misbehaving.Fault = request.param
    if found is hang:
        monkeypatch.setattr("training_jobs.data.http_client.TIMEOUT", httpx.Timeout(1.0))
    return found


def pull(context: job.Context, group: str) -> pull_dataset.Result:
    return pull_dataset.run(pull_dataset.Arguments(pipeline="p", group=group), context)


@pytest.mark.parametrize("path", ["/login", "/meta/pictures", "/meta/picsets", "ant_7.png"])
@pytest.mark.parametrize("fault", [status(500), status(503), status(429), half_body, hang, hang_up], indirect=True)
def test_a_fault_that_passes_is_outlasted(
    service: Service, context: job.Context, group: str, path: str, fault: misbehaving.Fault
) -> None:
    service.spoil(path, fault, times=2)
    result = pull(context, group)
    assert (result.pictures, result.refused) == (COUNT, {})
    asked = sum(path in request for request in service.requests)
    assert asked == 3 or (fault is hang and asked > 3)  # on a busy machine an answer may take longer than that, too


@pytest.mark.parametrize("path", ["/login", "/meta/pictures", "/meta/picsets", "ant_7.png"])
@pytest.mark.parametrize("fault", [status(500), half_body, hang], indirect=True)
def test_a_fault_that_stays_is_left_to_a_later_try_that_finds_what_was_fetched(
    service: Service,
    context: job.Context,
    bottle: FolderBottle,
    group: str,
    path: str,
    fault: misbehaving.Fault,
) -> None:
    service.spoil(path, fault)
    with pytest.raises(TransientError, match=f"{path}.* 4 times"):
        pull(context, group)
    assert list(bottle.keys("snapshots")) == []
    fetched = len(transfer.read_index(bottle, group))
    service.mend()
    service.requests.clear()
    result = pull(context, group)
    assert (result.pictures, result.transferred) == (COUNT, COUNT - fetched)
    asked = [request for request in service.requests if "/files/" in request]
    assert len(set(asked)) == COUNT - fetched
    assert len(asked) == COUNT - fetched or fault is hang  # on a busy machine an answer may take longer than that, too
    if path == "/meta/picsets":
        assert fetched == COUNT


def test_a_service_that_is_down_ends_the_pull_soon(service: Service, context: job.Context, group: str) -> None:
    service.spoil("/files/", status(500))
    started = time.monotonic()
    with pytest.raises(TransientError):
        pull(context, group)
    assert time.monotonic() - started < patience(10)
    # each of the eight threads may be in its four attempts; the other pictures are not asked for
    assert sum("/files/" in request for request in service.requests) <= 2 * 8 * 4


def test_nobody_at_the_address_is_worth_another_try(
    service: Service, context: job.Context, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_COLLECT_URL", f"http://127.0.0.1:{servers.free_port()}")
    with pytest.raises(TransientError, match="/login failed"):
        pull(context, group)


def test_a_page_for_people_instead_of_json_is_worth_another_try(
    service: Service, context: job.Context, group: str
) -> None:
    service.spoil("/meta/pictures", page, times=1)
    with pytest.raises(TransientError, match="did not answer with JSON but with '<html>maintenance"):
        pull(context, group)
    assert pull(context, group).pictures == COUNT


def test_a_page_for_people_instead_of_a_picture_is_refused_and_fetched_again_next_time(
    service: Service, context: job.Context, group: str
) -> None:
    service.spoil("ant_7.png", page, times=1)
    assert pull(context, group).refused == {"corrupt": 1}
    again = pull(context, group)
    assert (again.transferred, again.refused, again.pictures) == (1, {}, COUNT)


def test_a_picture_that_is_listed_but_not_there_is_refused_as_missing(
    service: Service, context: job.Context, group: str
) -> None:
    service.spoil("ant_7.png", status(404))
    result = pull(context, group)
    assert (result.refused, result.pictures) == ({"missing": 1}, COUNT - 1)


@pytest.mark.parametrize(("path", "code"), [("/login", 401), ("/meta/pictures", 400), ("ant_7.png", 403)])
def test_what_asking_again_cannot_change_is_a_configuration_error_at_once(
    service: Service, context: job.Context, group: str, path: str, code: int
) -> None:
    service.spoil(path, status(code))
    with pytest.raises(ConfigurationError, match=f"{path}.* answered {code}"):
        pull(context, group)
    assert sum(path in request for request in service.requests) == 1


def test_a_filepath_cannot_write_outside_the_bottle(
    service: Service, context: job.Context, bottle: FolderBottle, group: str
) -> None:
    service.pictures["files/ant/../../../../evil.png"] = service.pictures["files/ant/ant_7.png"]
    pull(context, group)
    assert not list(bottle.root.parent.rglob("evil.png"))


def test_a_picset_name_cannot_write_outside_the_bottle(
    service: Service, context: job.Context, bottle: FolderBottle, group: str
) -> None:
    evil = b'{"data": [{"picset": {"guid": "../../../evil"}, "items": []}]}'

    def answer(handler, _content) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(evil)))
        handler.end_headers()
        handler.wfile.write(evil)

    service.spoil("/meta/picsets", answer)
    with pytest.raises(ConfigurationError, match="picset"):
        pull(context, group)
    assert not list(bottle.root.parent.rglob("evil*"))
