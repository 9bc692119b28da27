"""The calls about canaries, and `route`, which a client asks before its request."""

from __future__ import annotations

from typing import Annotated, Self

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.model_storage.api.access import Actor
from services.model_storage.api.changes import Change, Staged
from services.model_storage.errors import NotFound
from services.model_storage.production.always_valid import Trials
from services.model_storage.production.canaries import Canary
from services.model_storage.production.canary_judge import Answers, Rules
from services.model_storage.production.history import Note, Text
from services.model_storage.repository.record import CANARY, check_model_name
from services.model_storage.service import Service
from services.sharing import share_of

MOST = 100_000  # in one report


class Route(BaseModel):
    """The name in Triton to send a request to, and the version that answers there."""

    model: str
    version: str
    stale_seconds: float | None = Field(
        None, description="how long ago this was known, where PostgreSQL does not answer; null: it is so now"
    )


class CanaryChange(Change):
    """Which shares of the requests the canary gets, what it has to show, and why."""

    share: float | None = Field(
        None, ge=1e-6, le=0.5, description="one share for its whole time, in the place of rules.steps"
    )
    judged: bool = Field(True, description="false: it is counted by nobody and keeps its share until it is ended")
    rules: Rules = Rules()

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.share is not None and "steps" in self.rules.model_fields_set:
            raise ValueError("give share or rules.steps, not both")
        return self

    def all_rules(self, late_ms: float) -> Rules:
        """Return the rules, with the share as their only step where it is given; `late_ms` is the service's limit."""
        given: dict[str, object] = {} if "late_ms" in self.rules.model_fields_set else {"late_ms": late_ms}
        return self.rules.model_copy(update=given | ({} if self.share is None else {"steps": (self.share,)}))


class AnswersSeen(BaseModel):
    """How many answers there were, and how many of them came late or were errors."""

    model_config = ConfigDict(extra="forbid")

    count: int = Field(0, ge=0, le=MOST)
    late: int = Field(0, ge=0)
    failed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _within(self) -> Self:
        if max(self.late, self.failed) > self.count:
            raise ValueError(f"of {self.count} answers {max(self.late, self.failed)} cannot be bad")
        return self

    def answers(self) -> Answers:
        """Return them as the judge counts them."""
        return Answers(**self.model_dump())


class Compared(BaseModel):
    """How many examples both versions answered, and on how many they disagreed."""

    model_config = ConfigDict(extra="forbid")

    count: int = Field(0, ge=0, le=MOST)
    disagreed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.disagreed > self.count:
            raise ValueError(f"of {self.count} examples {self.disagreed} cannot disagree")
        return self


class CanaryReport(BaseModel):
    """What a router, or a client that measures, saw since its last report; each answer is reported once."""

    model_config = ConfigDict(extra="forbid")

    version: Text = Field(description="the canary that it is about")
    champion: Text = Field(description="the version in production that answered beside it")
    champion_answers: AnswersSeen = Field(AnswersSeen(), description="late: later than the canary's late_ms")
    canary_answers: AnswersSeen = AnswersSeen()
    compared: Compared = Compared()


def include(service: Service, routers: dict[str, APIRouter]) -> None:
    """Add the calls to the routers for "read" and "promote"; those of routers have a scope of their own."""
    reading, promoting = routers["read"], routers["promote"]
    canaries, known = service.canaries, service.known

    @reading.get("/models/{model}/route")
    def route(
        model: str,
        key: Annotated[str, Query(min_length=1, description="who asks, say a user's id: always answered alike")],
    ) -> Route:
        """Where to send a request: to the version in production, or to the canary for its share of the keys.

        Where PostgreSQL does not answer: as it was last known, for at most MODEL_STORAGE_STALE_SECONDS.
        """
        check_model_name(model)
        found = known.of(model)
        if found.champion is None:
            raise NotFound(f"no version of {model!r} is in production")
        canary, stale = found.canary, found.stale_seconds
        if canary is not None and canary.share is not None and share_of(model, key) < canary.share:
            return Route(model=model + CANARY, version=str(canary.version), stale_seconds=stale)
        return Route(model=model, version=str(found.champion.version), stale_seconds=stale)

    @reading.get("/models/{model}/canary")
    def canary(model: str) -> Canary:
        """The canary that is under way, its share, and what it has shown so far; 404 where there is none."""
        return canaries.state(model)

    @promoting.post("/models/{model}/versions/{version}/canary")
    def start_canary(model: str, version: str, change: CanaryChange, actor: Actor) -> Staged:
        """Serve a version as `<model>__canary` for a share of the requests; ask `route` which name to use.

        It judges itself: its share grows in steps, and it ends promoted or taken back, with a row that has the numbers.
        """
        rules = change.all_rules(service.settings.max_latency_ms)
        row = canaries.start(model, version, rules, change.note(actor), change.judged)
        return Staged(model=model + CANARY, triton_version=str(row.triton_version))

    @promoting.delete("/models/{model}/canary")
    def end_canary(model: str, actor: Actor) -> dict[str, bool]:
        """Take the canary out of Triton: it has shown that it is no better."""
        return {"removed": canaries.end(model, Note(reason="ended by hand", actor=actor))}


def reporting(service: Service, router: APIRouter) -> APIRouter:
    """Add the call of those who see the answers."""

    @router.post("/models/{model}/canary/reports")
    def report(model: str, seen: CanaryReport) -> dict[str, bool]:
        """Tell how many answers were late or failed, and how many examples the versions disagreed on; 409 where that
        canary is over.
        """
        sides = (seen.champion_answers.answers(), seen.canary_answers.answers())
        compared = Trials(count=seen.compared.count, bad=seen.compared.disagreed)
        service.canaries.report(model, seen.version, seen.champion, *sides, compared)
        return {"counted": True}

    return router
