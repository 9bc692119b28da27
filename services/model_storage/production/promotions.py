"""Versions go into production and out of it: Triton, repository and history change together or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from services.model_storage.errors import Conflict, NotFound, NotTrusted, ServingFailed, StorageError
from services.model_storage.production.candidates import Beside
from services.model_storage.production.history import PRODUCTION, Action, Change, History, Note, Promotion
from services.model_storage.production.picture_entries import PictureEntries
from services.model_storage.production.proof import MAX_LATENCY_MS, Proof, Prover
from services.model_storage.production.retention import Cleaned, cleaned, needed
from services.model_storage.production.stages import ways_back
from services.model_storage.repository.catalog import Catalog
from services.model_storage.repository.model_config import CONFIG_FILE
from services.model_storage.repository.record import (
    CANARY,
    CANDIDATE,
    PICTURES,
    PREVIOUS,
    PROOF,
    Record,
    check_model_name,
)
from services.model_storage.repository.store import ModelLocks
from services.model_storage.triton import Fleet, Served

logger = logging.getLogger(__name__)


T = TypeVar("T")
TAKEN_OVER = "Triton served it when the model storage took the repository over"


class Tried(BaseModel):
    """What a version says of a picture: the likeliest classes first; or why it says nothing."""

    stage: Literal["champion", "previous"]
    version: str
    labels: list[str] = []
    probabilities: list[float] = []
    problem: str | None = None


class Production:
    """What Triton serves. The history in PostgreSQL is the truth; Triton is brought to it."""

    def __init__(
        self,
        catalog: Catalog,
        fleet: Fleet,
        history: History,
        entries: PictureEntries,
        max_latency_ms: float = MAX_LATENCY_MS,
    ) -> None:
        self.catalog, self.fleet, self.history = catalog, fleet, history
        self._glanced_at: Promotion | None = None
        self._foreign: set[str] = set()  # what Triton served in the last round and has no version here
        self._entries = entries
        self.beside = Beside(catalog, fleet, entries)
        self._prover = Prover(catalog, fleet, self.beside, max_latency_ms)
        self._locks = ModelLocks()  # not those of the catalog: an upload need not wait for a load

    def promote(self, model: str, version: str, note: Note, force: bool = False) -> Promotion:
        """Do what `promote_with_proof` does; return the row alone."""
        return self.promote_with_proof(model, version, note, force)[0]

    def promote_with_proof(
        self, model: str, version: str, note: Note, force: bool = False, max_latency_ms: float | None = None
    ) -> tuple[Promotion, Proof | None]:
        """Serve `version` under the model's name and write it down; the old version serves on if that fails.

        Before anything is switched the version shows that it has the interface of the one in production and answers
        its verified inputs; with `force` it need not. A version that is in production already is only loaded again,
        where Triton does not serve it, and shows nothing.

        Raises:
            NotFound: there is no such version.
            Conflict: another version is pinned.
            NotProved: it has another interface, or does not answer as was verified; nothing was changed.
            ServingFailed: Triton refused the version; the old one serves.
            Unavailable: Triton or PostgreSQL does not answer; nothing was changed.
        """
        record = self.catalog.version(model, version)
        return self.change(model, lambda change: self.promote_in(change, record, note, force, max_latency_ms))

    def promote_in(
        self, change: Change, record: Record, note: Note, force: bool = False, max_latency_ms: float | None = None,
        evidence: dict[str, Any] | None = None,
    ) -> tuple[Promotion, Proof | None]:  # fmt: skip
        """Do what `promote_with_proof` does, within a change; `evidence` is what it has shown as a canary."""
        _refuse_if_pinned(change, record.version)
        proof = self._prove(change, record, force, max_latency_ms)
        return self._switch(change, record, note, "promote", evidence), proof

    def pin(self, model: str, version: str, note: Note, force: bool = False) -> Promotion:
        """Bring `version` into production where it is not, by proof as `promote` does, and keep it until `unpin`.

        Raises:
            Conflict: another version is pinned.
            NotProved: as of `promote_with_proof`.
        """
        record = self.catalog.version(model, version)

        def pin(change: Change) -> Promotion:
            _refuse_if_pinned(change, record.version)
            self._prove(change, record, force)
            self._switch(change, record, note, "promote")
            return change.pin or change.add("pin", record.version, record.triton_version, record.target, note)

        return self.change(model, pin)

    def unpin(self, model: str, note: Note) -> bool:
        """Let other versions come into production again; return whether one was pinned."""
        check_model_name(model)

        def unpin(change: Change) -> bool:
            pin = change.pin
            if pin is not None:
                change.add("unpin", pin.version, pin.triton_version, pin.target, note)
            return pin is not None

        return self.change(model, unpin)

    def rollback(self, model: str, note: Note, from_version: str | None = None) -> Promotion:
        """Serve the version that was in production before the present one; again for the one before that.

        With `from_version` only where that version is in production: asked for twice it goes back once.

        Where Triton refuses it, a version made from the same graph takes its place: the plan for this Triton's
        TensorRT, or the ONNX file.

        Raises:
            Conflict: there is no earlier version, the present one is pinned, or another than `from_version`.
        """

        def roll_back(change: Change) -> Promotion:
            present = change.champion.version if change.champion else None
            if from_version not in (None, present):
                raise Conflict(f"not version {from_version} of {model!r} is in production, but {present or 'none'}")
            return self._roll_back(change, model, note)

        return self.change(model, roll_back)

    def load(self, model: str, note: Note) -> Promotion:
        """Load what is in production, or was before it was unloaded.

        Of a model that never was: the version that an earlier service has configured, else the latest.
        """

        def load(change: Change) -> Promotion:
            earlier = [row.version for row in change.rows if row.version is not None]
            records = self.catalog.versions(model)
            if not records:
                raise NotFound(f"there is no model {model!r}")
            left = self.catalog.configured(model) if self.catalog.has_taken_over(model) else None
            record = self.catalog.version(model, earlier[-1]) if earlier else left or records[-1]
            return self._switch(change, record, _data_of(change, record.version, note), "load")

        return self.change(model, load)

    def unload(self, model: str, note: Note) -> None:
        """Take the model out of Triton and write down that nothing is in production."""
        if not self.catalog.versions(model):
            raise NotFound(f"there is no model {model!r}")

        def unload(change: Change) -> None:
            self._entries.remove(model)
            self.fleet.unload(model)
            if change.champion is not None:
                change.add("unload", None, None, None, note)

        self.change(model, unload)

    def stage(self, model: str, version: str) -> Record:
        """Serve `version` under the name `<model>__candidate`, beside the version in production."""
        record = self.catalog.version(model, version)
        with self._locks.of(model):
            self.check(record, self.history.rows(model, actions=PRODUCTION))
            self.beside.serve(record, model + CANDIDATE)
        return record

    def unstage(self, model: str) -> bool:
        """Take the candidate out of Triton and remove its folder; return whether there was one."""
        check_model_name(model)
        with self._locks.of(model):
            return self.beside.remove(model + CANDIDATE)

    def delete(self, model: str, version: str, older_than_days: float) -> Cleaned:
        """Delete a version for good.

        Raises:
            Conflict: it is needed, or younger than that; the message says what for.
        """
        record = self.catalog.version(model, version)

        def delete(change: Change) -> Cleaned:
            if why := self._needed(change, [record], older_than_days).get(version):
                raise Conflict(f"version {version} of {model!r} is not deleted: {why}")
            return self._deleted(model, [record])

        return self.change(model, delete)

    def clean(self, model: str, older_than_days: float, dry_run: bool = False) -> Cleaned:
        """Delete each version that nothing needs (`retention.needed`) and that is older than that.

        Raises:
            NotFound: there is no such model.
        """
        if not self.catalog.has_versions(model):
            raise NotFound(f"there is no model {model!r}")

        def clean(change: Change) -> Cleaned:
            records = self.catalog.versions(model)
            kept = self._needed(change, records, older_than_days)
            unneeded = [record for record in records if record.version not in kept]
            done = cleaned(model, unneeded) if dry_run else self._deleted(model, unneeded)
            return done.model_copy(update={"kept": kept, "dry_run": dry_run})

        return self.change(model, clean)

    def _needed(self, change: Change, records: Sequence[Record], older_than_days: float) -> dict[str, str]:
        model = records[0].model
        return needed(
            change, records, older_than_days, self.fleet.served().numbers(model), self.catalog.configured(model)
        )

    def _deleted(self, model: str, records: Sequence[Record]) -> Cleaned:
        for record in records:
            self.catalog.delete(record)
        return cleaned(model, records)

    def try_picture(self, model: str, picture: bytes) -> list[Tried]:
        """Ask the version in production, and the one that a rollback goes to, what an encoded picture shows.

        The latter is served as `<model>__previous` meanwhile.

        Raises:
            NotFound: nothing is in production.
        """
        check_model_name(model)
        with self._locks.of(model):
            rows = self.history.rows(model)[::-1]
            champion = self.history.champion(model)
            if champion is None:
                raise NotFound(f"no version of {model!r} is in production")
            found = [self._tried("champion", model, str(champion.version), picture)]
            if back := ways_back([row for row in rows if row.action in PRODUCTION]):
                name = model + PREVIOUS
                try:
                    record = self.catalog.version(model, back[-1])
                    self.check(record, rows)
                    self.beside.serve(record, name)
                    found.append(self._tried("previous", name, back[-1], picture))
                except (ServingFailed, NotFound, NotTrusted) as error:
                    found.append(Tried(stage="previous", version=back[-1], problem=str(error)))
                finally:
                    self.beside.remove(name)
            return found

    def _tried(self, stage: Literal["champion", "previous"], name: str, version: str, picture: bytes) -> Tried:
        if name + PICTURES not in self.fleet.served().models():
            why = "Triton serves no entry for its pictures: it has no model.json of a classifier, or Triton no OpenCV"
            return Tried(stage=stage, version=version, problem=why)
        try:
            labels, probabilities = self.fleet.servers[0].show(name + PICTURES, picture)
        except ServingFailed as error:
            return Tried(stage=stage, version=version, problem=str(error))
        return Tried(stage=stage, version=version, labels=labels, probabilities=probabilities)

    def reconcile(self) -> list[str]:
        """Bring Triton to what the history says; return the models for which that did not succeed, with the cause.

        Raises:
            Unavailable: Triton or PostgreSQL does not answer.
        """
        champions, canaries, served, failed = self.history.champions(), self.history.canaries(), self.fleet.served(), []
        for model in {*champions, *self._ours(served)}:
            if not self._is_right(served, model, champions.get(model)):
                failed += self._attempt(model, lambda change, model=model: self._ensure(change, model))  # type: ignore[misc]
        for model, canary in canaries.items():
            if not self._is_right(served, model, canary, model + CANARY):
                failed += self._attempt(model, lambda change, model=model: self._ensure_canary(change, model))  # type: ignore[misc]
        for name, model in self.beside.names():
            unwanted = name.endswith((PREVIOUS, PROOF)) or (name.endswith(CANARY) and model not in canaries)
            if unwanted or name not in served.models():
                failed += self._attempt(model, lambda change, name=name: self._remove_stray(change, name))  # type: ignore[misc]
        troubled = {sentence.partition(":")[0] for sentence in failed}
        sound = [row for model, row in champions.items() if model not in troubled]
        self._glanced_at = min(sound, key=lambda row: row.model, default=None)
        return failed

    def _ours(self, served: Served) -> set[str]:
        """Return the served models that have versions here; of a foreign one the repository is asked once."""
        names = served.models()
        ours = {model for model in names if self.catalog.has_versions(model, look_up=model not in self._foreign)}
        self._foreign = names - ours
        return ours

    def has_lost_a_model(self) -> bool:
        """Whether a Triton no longer serves a version that it served after the last `reconcile`: it was restarted."""
        row = self._glanced_at
        return row is not None and row.triton_version is not None and self.fleet.has_lost(row.model, row.triton_version)

    def _is_right(self, served: Served, model: str, row: Promotion | None, name: str = "") -> bool:
        """Whether every server serves what `row` says as `name`, and the entry for its pictures."""
        name = name or model
        if row is None or row.version is None:
            return served.exactly(name, None) and self._entries.is_right(served, name, None)
        try:
            record = self.catalog.version(model, row.version)
        except StorageError:
            return False  # said where it is put right
        return served.exactly(name, row.triton_version) and self._entries.is_right(served, name, record)

    def _attempt(self, model: str, action: Callable[[Change], None]) -> list[str]:
        try:
            self.change(model, action)
        except StorageError as error:
            return [f"{model}: {error}"]
        return []

    def _ensure_canary(self, change: Change, model: str) -> None:
        if change.canary is not None and change.canary.version is not None:
            record = self.catalog.version(model, change.canary.version)
            self.check(record, change.rows)
            self.beside.serve(record, model + CANARY)

    def _remove_stray(self, change: Change, name: str) -> None:
        """Remove what is served beside a model and should not be, and what is not served: its maker was interrupted."""
        is_canary = name.endswith(CANARY) and change.canary is not None
        if not is_canary and (name.endswith((CANARY, PREVIOUS, PROOF)) or name not in self.fleet.served().models()):
            self.beside.remove(name)

    def change(self, model: str, action: Callable[[Change], T]) -> T:
        """Return what `action` does, which nobody else's change of the model comes between."""
        with self._locks.of(model):
            self._take_over(model)
            with self.history.change(model) as change:
                return action(change)

    def _take_over(self, model: str) -> None:
        """Make what Triton serves of a model that was taken over the first row of its history."""
        if not self.catalog.has_taken_over(model) or self.history.rows(model, limit=1):
            return
        number = self.fleet.served().version(model)
        left = [record for record in self.catalog.versions(model) if record.taken_over is not None]
        served = [record for record in left if record.triton_version == number]
        if not served:
            return
        with self.history.change(model) as change:
            if not change.rows:
                change.add("load", served[0].version, number, served[0].target, Note(reason=TAKEN_OVER))
                logger.info("Triton serves %s %s, which is in production from now on", model, served[0].version)

    def _roll_back(self, change: Change, model: str, note: Note) -> Promotion:
        _refuse_if_pinned(change, None)
        earlier = ways_back(change.rows)
        if not earlier:
            raise Conflict(f"the model {model!r} has no earlier version in production to go back to")
        wanted = self.catalog.version(model, earlier[-1])
        refused: ServingFailed | None = None
        for record in [wanted, *self._kin(wanted)]:
            try:
                return self._switch(change, record, _data_of(change, wanted.version, note), "rollback")
            except ServingFailed as error:  # say, a plan of another TensorRT than this Triton's
                refused = refused or error
        raise refused or NotFound(f"there is no version {wanted.version} of {model!r}")

    def _kin(self, record: Record) -> list[Record]:
        """Return the other versions made from the same graph, the latest first: the same model for other servers."""
        graph = record.meta.get("onnx_sha256")
        others = reversed(self.catalog.versions(record.model))
        return [other for other in others if graph and other.meta.get("onnx_sha256") == graph and other != record]

    def _switch(
        self, change: Change, record: Record, note: Note, action: Action, evidence: dict[str, Any] | None = None
    ) -> Promotion:
        champion = change.champion
        if champion is not None and champion.version == record.version:
            if not self.fleet.served().exactly(record.model, record.triton_version):
                self.check(record, change.rows)
                self._serve(record)
            return champion
        self.check(record, change.rows)
        present = self._record_of(champion)
        before = self.catalog.store.read(f"{record.model}/{CONFIG_FILE}")
        try:
            self._serve(record, present)
            row = change.add(
                action, record.version, record.triton_version, record.target, note, signed_by=record.signed_by,
                evidence=evidence,
            )  # fmt: skip
        except Exception as error:
            logger.warning("%s %s did not come into production: %s", record.model, record.version, error)
            self._restore(change, record.model, before, error)
            raise
        try:
            self.beside.remove(record.model + CANARY)  # what it was compared with is gone
        except StorageError as error:
            logger.warning("the canary of %s is over, but not yet out of Triton: %s", record.model, error)
        return row

    def _prove(self, change: Change, record: Record, force: bool, max_latency_ms: float | None = None) -> Proof | None:
        """Let a version show that it can take the place of the one in production; None where it has that already."""
        if change.champion is not None and change.champion.version == record.version:
            return None
        self.check(record, change.rows)
        return self._prover.prove(self._record_of(change.champion), record, force, max_latency_ms)

    def check(self, record: Record, rows: list[Promotion]) -> None:
        """Check before `record` is loaded that it is what was signed, as far as it must be; `rows`: its history."""
        self.catalog.check(record, [row.signed_by for row in rows if row.version == record.version])

    def _record_of(self, row: Promotion | None) -> Record | None:
        return None if row is None or row.version is None else self.catalog.version(row.model, row.version)

    def _serve(self, record: Record, present: Record | None = None) -> None:
        """Load exactly `record` under the model's name, in place of `present`; first the entry for its pictures."""
        model, number = record.model, record.triton_version
        self._entries.follow(record, model, present)
        self.catalog.store.write(f"{model}/{CONFIG_FILE}", self.catalog.config(record, model))
        self.fleet.serve(model, number)

    def _ensure(self, change: Change, model: str) -> None:
        """Load what is in production into a Triton that does not serve it; unload what is served and is not."""
        champion = change.champion
        served = self.fleet.served()
        if self._is_right(served, model, champion):
            return  # a change that was under way has done it
        if not change.rows and self.catalog.has_taken_over(model):
            return  # several versions, or others on each server: not loaded by us, so the next promotion ends it
        if champion is None or champion.version is None:
            logger.warning("Triton serves %s, which is not in production: unloaded", model)
            self._entries.remove(model)
            self.fleet.unload(model)
            return
        record = self.catalog.version(model, champion.version)
        self.check(record, change.rows)
        if served.exactly(model, record.triton_version):
            self._entries.follow(record, model)
            return
        try:
            self._serve(record)
        except ServingFailed:  # a model whose backend process died stays "loaded": only an unload clears it
            self.fleet.unload(model)
            self._serve(record)
        logger.info("Triton serves %s %s again", model, record.version)

    def _restore(self, change: Change, model: str, config: bytes | None, cause: Exception) -> None:
        """Bring configuration and Triton back to what they were before a change that failed."""
        champion = change.champion
        try:
            if config is not None:
                self.catalog.store.write(f"{model}/{CONFIG_FILE}", config)
            if champion is None or champion.version is None or champion.triton_version is None:
                self._entries.remove(model)
                self.fleet.unload(model)
                return
            record = self.catalog.version(model, champion.version)
            self.check(record, change.rows)
            for server in self.fleet.servers:
                if isinstance(cause, ServingFailed) and server.served().get(model) == [champion.triton_version]:
                    continue  # a refused load leaves the old version as it was
                server.serve(model, champion.triton_version)
            self._entries.follow(record, model)
        except StorageError as error:
            logger.error("%s: the version before could not be brought back yet: %s", model, error)
            raise type(error)(f"{cause}; and the version before could not be brought back yet: {error}") from error


def _refuse_if_pinned(change: Change, version: str | None) -> None:
    pin = change.pin
    if pin is not None and pin.version != version:
        why = f": {pin.reason}" if pin.reason else ""
        raise Conflict(
            f"version {pin.version} of {pin.model!r} is pinned since {pin.promoted_at:%Y-%m-%d %H:%M} UTC by "
            f"{pin.by}{why}; unpin it first"
        )


def _data_of(change: Change, version: str, note: Note) -> Note:
    """Return `note` with the run and the snapshot that the version was promoted with, where it names none."""
    for row in reversed(change.rows):
        if row.version == version:
            return note.model_copy(
                update={
                    "run_id": note.run_id or row.run_id,
                    "snapshot_id": note.snapshot_id or row.snapshot_id,
                }
            )
    return note
