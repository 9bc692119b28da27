"""Canaries: versions that answer a share of the requests, and are promoted or taken back by what that shows."""

from __future__ import annotations

import logging

from pydantic import BaseModel

from services.model_storage.errors import Conflict, NotFound, NotProved, StorageError
from services.model_storage.production.always_valid import Trials
from services.model_storage.production.canary_judge import Answers, Evidence, Judging, Rules
from services.model_storage.production.history import Change, Note, Promotion
from services.model_storage.production.promotions import Production
from services.model_storage.repository.record import CANARY, check_model_name

logger = logging.getLogger(__name__)

JUDGE = "(judge)"
"""Who ends a canary that judges itself, in the history: no name of a token has parentheses."""


class Canary(BaseModel):
    """A canary that is under way."""

    model: str
    """its name in Triton"""
    version: str
    champion: str
    share: float
    since: str
    """when it got this share, UTC"""
    evidence: Evidence | None
    """None: it does not judge itself"""


class Canaries:
    """Starts canaries, counts what they answer, and ends them."""

    def __init__(self, production: Production) -> None:
        self._production = production

    def start(self, model: str, version: str, rules: Rules, note: Note, judged: bool = True) -> Promotion:
        """Serve `version` as `<model>__canary` for the first share of the requests; again with other rules, or another
        share, which begins the judging anew.

        It is over with the next change of what is in production, be it the promotion of this version or a rollback.
        One that is not judged keeps its share until somebody ends it.

        Raises:
            Conflict: nothing is in production, or this very version, or another canary is under way.
        """
        production = self._production
        record = production.catalog.version(model, version)

        def start(change: Change) -> Promotion:
            champion = change.champion
            if champion is None or champion.version is None or champion.version == version:
                what = "this version is" if champion else "nothing is"
                raise Conflict(f"a canary of {model!r} runs beside another version in production, and {what}")
            if change.canary is None:
                production.check(record, change.rows)
                production.beside.serve(record, model + CANARY)
            elif change.canary.version != version:
                raise Conflict(f"version {change.canary.version} is the canary of {model!r}: end it first")
            try:
                judging = Judging(version=version, champion=champion.version, rules=rules)
                if judged:
                    judging.read(self._counters(champion, record.triton_version))
                change.keep(judging.model_dump(mode="json") if judged else None)
                return change.add(
                    "canary", version, record.triton_version, record.target, note, judging.share,
                    signed_by=record.signed_by,
                )  # fmt: skip
            except Exception:
                if change.canary is None:
                    production.beside.remove(model + CANARY)
                raise

        return production.change(model, start)

    def end(self, model: str, note: Note) -> bool:
        """Take the canary out of Triton; return whether there was one."""
        check_model_name(model)

        def end(change: Change) -> bool:
            canary, judging = change.canary, _judging_of(change, change.judging())
            if canary is not None:
                evidence = judging.evidence(str(note.reason)).model_dump(mode="json") if judging else None
                change.keep(None)
                change.add(
                    "end_canary", canary.version, canary.triton_version, canary.target, note, evidence=evidence
                )  # fmt: skip
            return self._production.beside.remove(model + CANARY) or canary is not None

        return self._production.change(model, end)

    def state(self, model: str) -> Canary:
        """Return the canary that is under way, and what it has shown.

        Raises:
            NotFound: none is.
        """
        check_model_name(model)
        history = self._production.history
        row, champion = history.canary(model), history.champion(model)
        if row is None or champion is None:
            raise NotFound(f"no canary of {model!r} is under way")
        judging = _judging(history.judging(model), row, champion)
        return Canary(
            model=model + CANARY,
            version=str(row.version),
            champion=str(champion.version),
            share=row.share or 0.0,
            since=row.promoted_at.isoformat(),
            evidence=judging.evidence(judging.trouble or judging.verdict()[1]) if judging else None,
        )

    def report(
        self, model: str, version: str, champion_version: str, champion: Answers, canary: Answers, compared: Trials
    ) -> None:
        """Count what clients saw: answers of both, and examples that both answered, in disagreement or not.

        Raises:
            Conflict: not this canary beside this champion is under way, or it does not judge itself.
        """
        check_model_name(model)

        def report(change: Change) -> None:
            judging = _judging_of(change, change.judging())
            if judging is None or (judging.version, judging.champion) != (version, champion_version):
                raise Conflict(
                    f"no canary {version} of {model!r} that judges itself is under way beside {champion_version}"
                )
            judging.report(champion, canary, compared)
            change.keep(judging.model_dump(mode="json"))

        self._production.change(model, report)

    def look(self) -> None:
        """Count what all canaries have answered since the last look, and do what that calls for.

        Raises:
            Unavailable: PostgreSQL does not answer.
        """
        for model in self._production.history.canaries():
            try:
                self._production.change(model, self._look_at)
            except StorageError as error:
                logger.warning("the canary of %s could not be judged yet: %s", model, error)

    def _look_at(self, change: Change) -> None:
        champion, canary, judging = change.champion, change.canary, _judging_of(change, change.judging())
        if judging is None or champion is None or canary is None or canary.triton_version is None:
            return
        judging.read(self._counters(champion, canary.triton_version))
        outcome, why = judging.verdict()
        if outcome in (None, "widen"):
            judging.trouble = None
        evidence = judging.evidence(why).model_dump(mode="json")
        note = Note(reason=f"canary judged: {why}", actor=JUDGE, run_id=canary.run_id, snapshot_id=canary.snapshot_id)
        if outcome == "widen":
            judging.widen()
            change.keep(judging.model_dump(mode="json"))
            change.add(
                "canary", canary.version, canary.triton_version, canary.target, note, judging.share,
                signed_by=canary.signed_by, evidence=evidence,
            )  # fmt: skip
        elif outcome == "promote":
            self._promote(change, judging, canary, note, evidence)
        elif outcome is not None:
            change.keep(None)
            change.add("end_canary", canary.version, canary.triton_version, canary.target, note, evidence=evidence)
            self._production.beside.remove(champion.model + CANARY)
        else:
            change.keep(judging.model_dump(mode="json"))
        if outcome is not None:
            logger.info("the canary %s of %s, %s: %s", canary.version, champion.model, outcome, why)

    def _promote(
        self, change: Change, judging: Judging, canary: Promotion, note: Note, evidence: dict[str, object]
    ) -> None:
        """Promote a canary by the proof that each promotion takes; where that is refused it stays one, and says why."""
        try:
            record = self._production.catalog.version(canary.model, str(canary.version))
            self._production.promote_in(change, record, note, evidence=evidence)
        except NotProved as error:
            change.keep(None)
            refused = note.model_copy(update={"reason": f"{note.reason}; but {error}"[:2000]})
            change.add("end_canary", canary.version, canary.triton_version, canary.target, refused, evidence=evidence)
            self._production.beside.remove(canary.model + CANARY)
        except StorageError as error:  # pinned, or something does not answer: the next look tries again
            judging.trouble = f"it has shown what it should ({note.reason}), but is not promoted: {error}"
            logger.warning("the canary of %s: %s", canary.model, judging.trouble)
            change.keep(judging.model_dump(mode="json"))

    def _counters(self, champion: Promotion, canary: int) -> dict[str, dict[str, tuple[int, int, int]]]:
        """Return the counters of both on each server that serves both."""
        found = {}
        for server in self._production.fleet.servers:
            try:
                found[server.address] = {
                    "champion": server.answered(champion.model, champion.triton_version or 0),
                    "canary": server.answered(champion.model + CANARY, canary),
                }
            except StorageError as error:  # away, or back and not loaded again yet
                logger.info("%s", error)
        return found


def _judging_of(change: Change, kept: dict[str, object] | None) -> Judging | None:
    return _judging(kept, change.canary, change.champion)


def _judging(kept: dict[str, object] | None, canary: Promotion | None, champion: Promotion | None) -> Judging | None:
    """Return what was counted, where it is of this canary beside this champion."""
    if kept is None or canary is None or champion is None:
        return None
    judging = Judging.model_validate(kept)
    return judging if (judging.version, judging.champion) == (canary.version, champion.version) else None
