"""A canary that judges itself: by its rules alone, and on a real Triton."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from services.model_storage.errors import StorageError
from services.model_storage.production.always_valid import Trials
from services.model_storage.production.canary_judge import Answers, Judging, Rules
from services.model_storage.production.history import Note
from tests.services.model_storage.support import (
    READ_TOKEN,
    Database,
    Storage,
    model_zip,
    running_triton,
    serving,
    settings_for,
    zip_of,
)
from tests.services.model_storage.test_old_clients import PYTHON_MODEL
from tests.support.tiny_onnx import scaling_config

FAILING = PYTHON_MODEL.replace(  # an error that is answered, not raised, is a success by Triton's count
    "            answers.append",
    "            if given[0, 0] < 0: raise ValueError('a number below 0')\n            answers.append",
)
SLOW = PYTHON_MODEL.replace("        answers = []", "        import time; time.sleep(0.15); answers = []")
CLOSE = {"steps": [0.2, 0.5], "step_requests": 20, "min_requests": 40, "margin": 0.15}


def counters(
    champion: tuple[int, int, int], canary: tuple[int, int, int]
) -> dict[str, dict[str, tuple[int, int, int]]]:
    return {"triton": {"champion": champion, "canary": canary}}


def judging(**rules: object) -> Judging:
    made = Judging(version="2", champion="1", rules=Rules(**rules))
    made.read(counters((1000, 5, 10**9), (3, 0, 10**6)))
    return made


def test_what_triton_had_counted_before_is_not_counted_and_a_restart_loses_nothing_else() -> None:
    made = judging()
    assert made.errors.canary.count == made.errors.champion.count == 0
    made.read(counters((1090, 6, 2 * 10**9), (12, 1, 4 * 10**6)))
    assert (made.errors.champion, made.errors.canary) == (Trials(count=91, bad=1), Trials(count=10, bad=1))
    made.read(counters((40, 2, 10**8), (5, 0, 10**5)))  # a Triton that was started anew has counted from 0
    assert (made.errors.champion, made.errors.canary) == (Trials(count=133, bad=3), Trials(count=15, bad=1))
    made.read({})  # it does not answer
    made.read(counters((50, 2, 10**8), (5, 0, 10**5)))
    assert made.errors.champion == Trials(count=143, bad=3)


def test_a_second_server_that_comes_later_is_counted_from_then_on() -> None:
    made = judging()
    both = counters((1000, 5, 10**9), (3, 0, 10**6)) | {"other": {"champion": (500, 400, 1), "canary": (7, 7, 1)}}
    made.read(both)
    assert made.errors.champion.count == 0
    both["other"] = {"champion": (600, 400, 1), "canary": (8, 7, 1)}
    made.read(both)
    assert (made.errors.champion, made.errors.canary) == (Trials(count=100), Trials(count=1))


def test_the_share_grows_after_answers_without_doubt_and_bounds_begin_anew() -> None:
    made = judging(steps=(0.05, 0.5), step_requests=10)
    assert made.verdict()[0] is None
    made.read(counters((1200, 5, 10**9), (13, 0, 10**7)))
    assert made.verdict()[0] == "widen"
    made.widen()
    assert (made.share, made.errors.canary_at_step.count, made.errors.canary.count) == (0.5, 0, 10)
    doubtful = judging(steps=(0.05, 0.5), step_requests=10)
    doubtful.read(counters((1200, 5, 10**9), (11, 2, 10**7)))
    outcome, why = doubtful.verdict()
    assert outcome is None and why.startswith("doubt: more errors than the champion has: 2 of 10 of the canary's")


def test_many_small_looks_come_to_what_one_large_look_does() -> None:
    rng, at_once, often = np.random.default_rng(1), judging(), judging()
    champion, canary = [1000, 5, 10**9], [3, 0, 10**6]
    for _ in range(400):
        arm, rate = (canary, 0.2) if rng.random() < 0.3 else (champion, 0.02)
        arm[1 if rng.random() < rate else 0] += 1
        often.read(counters(tuple(champion), tuple(canary)))
    at_once.read(counters(tuple(champion), tuple(canary)))
    assert often.errors.canary == at_once.errors.canary
    evidence = [made.evidence("").findings[0].e_value for made in (at_once, often)]
    assert min(evidence) > 300
    assert evidence[1] > evidence[0] ** 0.85, "small tables are put together"


def test_an_hour_in_which_both_fail_is_no_evidence_against_the_canary() -> None:
    made = judging()
    made.read(counters((1000, 955, 10**9), (3, 50, 10**6)))
    assert made.verdict()[0] != "abort"
    assert made.evidence("").findings[0].e_value == 1.0


def test_rounds_over_the_limit_count_where_the_canary_had_as_many_requests() -> None:
    made = judging(late_ms=100)
    made.read(counters((1020, 5, 2 * 10**9), (8, 0, 10**10)))
    assert made.slow_rounds.canary.count == 0, "a mean of five varies more than one of twenty"
    champion, canary = [1020, 5, 2 * 10**9], [8, 0, 10**10]
    rounds = 0
    while made.verdict()[0] != "abort":
        champion[0], champion[2] = champion[0] + 5, champion[2] + 5 * 10**6
        canary[0], canary[2] = canary[0] + 5, canary[2] + 10**9
        made.read(counters(tuple(champion), tuple(canary)))
        rounds += 1
    assert 8 <= rounds <= 16, "each is a coin that falls on one side: 2^-9 is 1 in 512"
    assert "more rounds with a mean over the limit" in made.verdict()[1]


def test_where_evaluation_predicts_a_disagreement_there_is_no_promotion_without_comparisons() -> None:
    rules = {"steps": (0.5,), "min_requests": 100}
    for expected, outcome in ((None, "promote"), (0.03, None)):
        made = judging(expected_disagreement=expected, **rules)
        made.read(counters((4000, 5, 2 * 10**9), (3000, 0, 10**7)))
        assert made.verdict()[0] == outcome
    made.report(Answers(), Answers(), Trials(count=3000, bad=90))
    assert made.verdict()[0] == "promote"
    made.report(Answers(), Answers(), Trials(count=300, bad=60))
    assert made.verdict()[0] == "abort"
    assert "more answers unlike the champion's than expected: 150 of 3300, 3.00% expected" in made.verdict()[1]


def test_a_canary_between_good_and_bad_ends_undecided() -> None:
    made = judging(steps=(0.5,), max_requests=200, margin=0.001)
    made.read(counters((1200, 6, 2 * 10**9), (202, 1, 10**7)))
    assert made.verdict()[0] == "undecided"


def test_what_was_counted_survives_being_written_down() -> None:
    made = judging()
    made.read(counters((1090, 6, 2 * 10**9), (12, 1, 4 * 10**6)))
    made.report(Answers(count=90, late=3), Answers(count=10, failed=1), Trials(count=4, bad=1))
    assert Judging.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize("steps", [(), (0.5, 0.2), (0.2, 0.2), (0,), (0.05, 0.6)])
def test_steps_that_do_not_rise_are_refused(steps: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="steps"):
        Rules(steps=steps)


@pytest.fixture(scope="module")
def python_storage(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """A service that serves code, so that a canary can be made to fail and to wait."""
    with (
        running_triton(tmp_path_factory.mktemp("canary")) as triton,
        serving(triton, settings_for(triton, database.new(), python_models="on")) as running,
    ):
        yield running


def start(storage: Storage, model: str, code: str | None, **rules: object) -> None:
    """Put version 0.0.1, times 6, in production, and start the canary 0.0.2, which runs `code` or is the same."""
    storage.promote(model, storage.published(model, 6.0))
    if code is None:
        storage.upload(model, model_zip(model, 6.0, **{"labels.txt": "another file"}))
    else:
        config = scaling_config(model).replace('platform: "onnxruntime_onnx"', 'backend: "python"')
        storage.upload(model, zip_of({"model.py": code, "config.pbtxt": config}))
    body = {"rules": CLOSE | rules, "reason": "try it", "run_id": "run 7"}
    reply = storage.client.post(f"/models/{model}/versions/0.0.2/canary", json=body)
    assert reply.status_code == 200, reply.text


def ask(storage: Storage, client: httpx.Client, name: str, value: float) -> None:
    """Send one request to Triton, whatever it answers."""
    data = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [value] * 4}]}
    client.post(f"http://{storage.triton.http}/v2/models/{name}/infer", json=data)


def traffic(storage: Storage, model: str, rounds: int = 60) -> dict[str, int]:
    """Ask as clients do, half of it what a failing canary fails on, until the canary has ended."""
    asked = {model: 0, f"{model}__canary": 0}
    with httpx.Client(timeout=30) as client:
        for number in range(rounds):
            reply = storage.client.get(f"/models/{model}/canary")
            if reply.status_code == 404:
                break
            share = reply.json()["share"]
            for turn in range(20):
                name = f"{model}__canary" if turn < 20 * share else model
                ask(storage, client, name, -1.0 if (turn + number) % 2 == 0 else 1.0)
                asked[name] += 1
            storage.service.canaries.look()
    return asked


def test_a_canary_that_fails_ends_itself_with_a_row_that_has_the_numbers(python_storage: Storage, model: str) -> None:
    storage = python_storage
    start(storage, model, FAILING)
    asked = traffic(storage, model)
    row = storage.client.get(f"/history/{model}").json()[0]
    assert (row["action"], row["version"], row["actor"], row["run_id"]) == ("end_canary", "0.0.2", "(judge)", "run 7")
    assert row["reason"].startswith("canary judged: more errors than the champion has: ")
    errors = row["evidence"]["findings"][0]
    assert (errors["champion"], errors["canary"]["count"]) == (
        {"count": asked[model], "bad": 0}, asked[f"{model}__canary"]
    )  # fmt: skip
    assert 0 < errors["canary"]["bad"] <= errors["canary"]["count"]
    assert errors["e_value"] >= 100 and row["evidence"]["e_value"] >= 100
    assert storage.client.get(f"/models/{model}/champion").json()["version"] == "0.0.1"
    assert f"{model}__canary" not in storage.service.fleet.served().models()
    assert not (storage.repository / f"{model}__canary").exists()


def test_a_canary_as_good_as_the_champion_is_widened_and_promoted_by_itself(
    python_storage: Storage, model: str
) -> None:
    storage = python_storage
    start(storage, model, None)
    shown = storage.client.get(f"/models/{model}/canary").json()
    assert (shown["version"], shown["champion"], shown["share"]) == ("0.0.2", "0.0.1", 0.2)
    assert shown["evidence"]["says"] == "0 of 20 answers at a share of 0.2"
    asked = traffic(storage, model)
    rows = storage.client.get(f"/history/{model}").json()
    assert [(row["action"], row["share"]) for row in rows] == [
        ("promote", None), ("canary", 0.5), ("canary", 0.2), ("promote", None)
    ]  # fmt: skip
    evidence = rows[0]["evidence"]
    assert rows[0]["reason"] == f"canary judged: {evidence['says']}"
    assert "errors below +" in evidence["says"] and "nothing was reported of failed answers" in evidence["says"]
    assert evidence["findings"][0]["canary"] == {"count": asked[f"{model}__canary"], "bad": 0}
    assert evidence["findings"][0]["excess_below"] < 0.15
    assert evidence["canary_ms"] > 0
    assert storage.client.get(f"/models/{model}/champion").json()["version"] == "0.0.2"
    assert storage.client.get(f"/models/{model}/canary").status_code == 404


def test_a_canary_that_is_slow_in_triton_ends_itself_without_a_report(python_storage: Storage, model: str) -> None:
    storage = python_storage
    start(storage, model, SLOW, steps=[0.5], late_ms=100, min_requests=1000)
    client = httpx.Client(timeout=30)
    for _ in range(40):
        for name in (model, f"{model}__canary"):
            ask(storage, client, name, 1.0)
        storage.service.canaries.look()
        if storage.client.get(f"/models/{model}/canary").status_code == 404:
            break
    row = storage.client.get(f"/history/{model}").json()[0]
    assert row["action"] == "end_canary"
    assert "more rounds with a mean over the limit" in row["reason"]
    assert row["evidence"]["canary_ms"] > 150 > row["evidence"]["champion_ms"]


def test_reports_of_late_and_other_answers_end_a_canary_and_need_a_token_for_that(
    python_storage: Storage, model: str
) -> None:
    storage = python_storage
    start(storage, model, None)
    path, seen = f"/models/{model}/canary/reports", {"version": "0.0.2", "champion": "0.0.1"}
    reader = {"Authorization": f"Bearer {READ_TOKEN}"}
    assert storage.client.post(path, json=seen, headers=reader).status_code == 403
    assert storage.client.post(path, json=seen | {"version": "0.0.1"}).status_code == 409
    assert storage.client.post(path, json=seen | {"compared": {"count": 1, "disagreed": 2}}).status_code == 422
    late = {"champion_answers": {"count": 80, "late": 1}, "canary_answers": {"count": 20, "failed": 2}}
    assert storage.client.post(path, json=seen | late).json() == {"counted": True}
    storage.service.canaries.look()
    assert storage.client.get(f"/models/{model}/canary").status_code == 200
    assert storage.client.post(path, json=seen | {"compared": {"count": 40, "disagreed": 15}}).status_code == 200
    storage.service.canaries.look()
    row = storage.client.get(f"/history/{model}").json()[0]
    assert "more answers unlike the champion's than expected: 15 of 40, 5.00% expected" in row["reason"]
    assert row["evidence"]["findings"][1]["canary"] == {"count": 20, "bad": 2}
    assert storage.client.post(path, json=seen | late).status_code == 409, "it is over"


def test_a_pinned_champion_stays_and_the_canary_says_why_it_is_not_promoted(
    python_storage: Storage, model: str
) -> None:
    storage = python_storage
    start(storage, model, None, steps=[0.5], min_requests=1, margin=0.9)
    storage.client.post(f"/models/{model}/versions/0.0.1/pin", json={"reason": "for the audit"})
    client = httpx.Client(timeout=30)
    for name in [model, f"{model}__canary"] * 12:
        ask(storage, client, name, 1.0)
    storage.service.canaries.look()
    says = storage.client.get(f"/models/{model}/canary").json()["evidence"]["says"]
    assert "is not promoted: version 0.0.1" in says and "for the audit" in says
    storage.client.delete(f"/models/{model}/pin")
    storage.service.canaries.look()
    assert storage.client.get(f"/models/{model}/champion").json()["version"] == "0.0.2"


def test_a_canary_that_is_not_judged_stays_whatever_it_does(python_storage: Storage, model: str) -> None:
    storage = python_storage
    start(storage, model, None)
    body = {"share": 0.3, "judged": False}
    assert storage.client.post(f"/models/{model}/versions/0.0.2/canary", json=body).status_code == 200
    storage.service.canaries.look()
    shown = storage.client.get(f"/models/{model}/canary").json()
    assert (shown["share"], shown["evidence"]) == (0.3, None)
    body = {"share": 0.3, "rules": {"steps": [0.1]}}
    assert storage.client.post(f"/models/{model}/versions/0.0.2/canary", json=body).status_code == 422


def test_one_canary_in_trouble_does_not_keep_the_others_from_being_judged(
    python_storage: Storage, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = python_storage
    for name in (model, f"{model}x"):
        start(storage, name, None)
    production, looked = storage.service.production, []
    change = production.change

    def troubled(name: str, action: object) -> object:
        looked.append(name)
        if name == model:
            raise StorageError("in trouble")
        return change(name, action)

    monkeypatch.setattr(production, "change", troubled)
    storage.service.canaries.look()
    assert {model, f"{model}x"} <= set(looked)
    monkeypatch.undo()
    for name in (model, f"{model}x"):
        storage.service.canaries.end(name, Note(reason="done"))
        row = storage.service.history.rows(name, limit=1)[0]
        assert row.evidence is not None and row.evidence["says"] == "done"


def test_the_watch_judges_by_itself(database_url: str, model: str, tmp_path: Path) -> None:
    with (
        running_triton(tmp_path) as triton,
        serving(triton, settings_for(triton, database_url, watch_seconds=0.1)) as storage,
    ):
        start(storage, model, None, steps=[0.5], min_requests=10, margin=0.9)
        started, client = time.monotonic(), httpx.Client(timeout=30)
        while storage.client.get(f"/models/{model}/champion").json()["version"] == "0.0.1":
            for name in (model, f"{model}__canary"):
                ask(storage, client, name, 1.0)
            assert time.monotonic() - started < 60
