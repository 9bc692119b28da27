"""Random sequences of uploads, promotions, rollbacks, crashes and restarts, against a model of what must hold.

Triton is a double here, since hundreds of sequences need thousands of loads: it serves what the configuration on the
disk names and refuses a model whose file says so. The other tests have the real one.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest
from google.protobuf import text_format
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.model_storage.errors import Conflict, NotFound, Refused, ServingFailed, StorageError, Unavailable
from services.model_storage.production.canaries import Canaries
from services.model_storage.production.canary_judge import Rules
from services.model_storage.production.history import Change, History, Note
from services.model_storage.production.picture_entries import PictureEntries
from services.model_storage.production.promotions import Production
from services.model_storage.repository.catalog import Catalog
from services.model_storage.repository.record import order
from services.model_storage.repository.store import FolderStore
from services.model_storage.triton import Fleet
from tests.services.model_storage.support import Database, zip_of

MODELS = st.sampled_from(["first", "second"])
CONTENTS = st.sampled_from([b"zero", b"one", b"two", b"three", b"bad"])
POINTS = st.sampled_from(["place", "create", "write", "load", "check", "add"])


class Crash(BaseException):
    """The process ends here: no handler of the service sees it."""


class TritonDouble:
    """Serves what the configuration on the disk names; `is_away` and `crash` are set by the test."""

    address = "double"

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.loaded: dict[str, int] = {}
        self.is_away = False
        self.hooks: dict[str, Callable[[], None]] = {}

    def load(self, model: str) -> None:
        self._answer()
        config = text_format.Parse((self.repository / model / "config.pbtxt").read_text(), ModelConfig())
        number = config.version_policy.specific.versions[0]
        if (self.repository / model / str(number) / "model.onnx").read_bytes() == b"bad":
            raise ServingFailed("no model")
        self.loaded[model] = number
        self.hooks.get("load", lambda: None)()

    def unload(self, model: str) -> None:
        self._answer()
        self.loaded.pop(model, None)

    def served(self) -> dict[str, list[int]]:
        self._answer()
        return {model: [number] for model, number in self.loaded.items()}

    def config(self, model: str) -> object:
        self._answer()
        raise ServingFailed(f"the double does not complete the configuration of {model}")

    def answered(self, model: str, number: int) -> tuple[int, int, int]:
        self._answer()
        return 0, 0, 0

    def serve(self, model: str, number: int) -> None:
        self.load(model)
        self.check_serves(model, number)

    def check_serves(self, model: str, number: int) -> None:
        if self.served().get(model) != [number]:
            raise ServingFailed("another version is served")
        self.hooks.get("check", lambda: None)()

    def _answer(self) -> None:
        if self.is_away:
            raise Unavailable("Triton is away")


class ModelStorage(RuleBasedStateMachine):
    """What must hold: versions never change or go, and the history tells what Triton serves."""

    database_url = ""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.triton = TritonDouble(self.folder)
        self.history = History(self.database_url)
        self.history.prepare()
        with psycopg2.connect(self.database_url) as connection, connection.cursor() as cursor:
            cursor.execute("TRUNCATE model_storage.promotions")
        connection.close()
        self.versions: dict[str, dict[str, bytes]] = {"first": {}, "second": {}}
        self.champions: dict[str, list[str]] = {"first": [], "second": []}
        self.canaries: dict[str, str | None] = {"first": None, "second": None}
        self._open()

    def _open(self) -> None:
        self.store = FolderStore(self.folder)
        self.catalog = Catalog(self.store, 1 << 20)
        self.catalog.reconcile()
        fleet = Fleet([self.triton])
        self.production = Production(
            self.catalog, fleet, self.history, PictureEntries(self.catalog, fleet, wanted=True)
        )
        self.canary = Canaries(self.production)
        if not self.triton.is_away:
            assert self.production.reconcile() == []

    def _crash(self, point: str, action: Callable[[], object]) -> None:
        """Run `action`, end it at `point` if it comes that far, and start anew."""
        with pytest.MonkeyPatch.context() as patch:

            def crash() -> None:
                raise Crash

            def crash_after(owner: type, name: str) -> None:
                original = getattr(owner, name)
                patch.setattr(owner, name, lambda *a, **o: (original(*a, **o), crash()))

            if point in ("load", "check"):
                self.triton.hooks[point] = crash
            else:
                crash_after(*{"add": (Change, "add")}.get(point, (FolderStore, point)))
            try:
                action()
            except (Crash, StorageError):
                pass
            self.triton.hooks.clear()
        self.store.close()
        self._open()

    def _publish(self, model: str, content: bytes, version: str) -> tuple[str, bool]:
        config = f'name: "{model}" platform: "onnxruntime_onnx"'
        archive = self.folder / "archive"
        archive.write_bytes(zip_of({"model.onnx": content, "config.pbtxt": config}))
        record, already = self.catalog.publish(model, version, archive, "0" * 64)
        return record.version, already

    def _next(self, model: str) -> str:
        numbers = [tuple(int(part) for part in known.split(".")) for known in self.versions[model]]
        major, minor, patch = max(numbers, default=(0, 0, 0))
        return f"{major}.{minor}.{patch + 1}"

    def _find(self, model: str, content: bytes) -> list[str]:
        return [
            version for version in sorted(self.versions[model], key=order) if self.versions[model][version] == content
        ]

    @rule(model=MODELS, content=CONTENTS)
    def upload(self, model: str, content: bytes) -> None:
        known, expected = self._find(model, content), self._next(model)
        assert self._publish(model, content, "next") == ((known[0], True) if known else (expected, False))
        if not known:
            self.versions[model][expected] = content

    @rule(model=MODELS, content=CONTENTS, version=st.sampled_from(["0.0.2", "0.1.0", "2.0.0"]))
    def upload_as(self, model: str, content: bytes, version: str) -> None:
        if version in self.versions[model]:
            with pytest.raises(Refused, match="already exists"):
                self._publish(model, content, version)
        else:
            assert self._publish(model, content, version) == (version, False)
            self.versions[model][version] = content

    @rule(model=MODELS, content=CONTENTS, point=POINTS)
    def upload_and_crash(self, model: str, content: bytes, point: str) -> None:
        known, expected = self._find(model, content), self._next(model)
        self._crash(point, lambda: self._publish(model, content, "next"))
        if not known and expected in [record.version for record in self.catalog.versions(model)]:
            self.versions[model][expected] = content

    @rule(model=MODELS, number=st.integers(0, 5))
    def promote(self, model: str, number: int) -> None:
        version = self._pick(model, number)
        self._expect(model, version, lambda: self.production.promote(model, version, Note()))

    @rule(model=MODELS, number=st.integers(0, 5), point=POINTS)
    def promote_and_crash(self, model: str, number: int, point: str) -> None:
        version, before = self._pick(model, number), self.champions[model][-1:]
        self._crash(point, lambda: self.production.promote(model, version, Note()))
        row = self.history.champion(model)
        assert [row.version if row else None] in (before or [None], [version]) or (row is None and not before)
        if row and [row.version] != before:
            self._push(model, version)

    @rule(model=MODELS)
    def roll_back(self, model: str) -> None:
        if len(self.champions[model]) < 2:
            with pytest.raises((Conflict, Unavailable)):
                self.production.rollback(model, Note())
        elif self.triton.is_away:
            with pytest.raises(Unavailable):
                self.production.rollback(model, Note())
        else:
            self.champions[model].pop()
            self.canaries[model] = None
            assert self.production.rollback(model, Note()).version == self.champions[model][-1]

    @rule(model=MODELS, number=st.integers(0, 5))
    def stage(self, model: str, number: int) -> None:
        version = self._pick(model, number)
        content = self.versions[model].get(version)
        errors = {None: NotFound, b"bad": ServingFailed}
        if content in errors or self.triton.is_away:
            with pytest.raises((errors.get(content, Unavailable), Unavailable)):
                self.production.stage(model, version)
        else:
            record = self.production.stage(model, version)
            assert self.triton.loaded[f"{model}__candidate"] == record.triton_version

    @rule(model=MODELS, number=st.integers(0, 5))
    def start_canary(self, model: str, number: int) -> None:
        version, champion, canary = self._pick(model, number), self.champions[model][-1:], self.canaries[model]
        content = self.versions[model].get(version)

        def start() -> None:
            self.canary.start(model, version, Rules(steps=(0.1,)), Note())

        if content is None:
            with pytest.raises(NotFound):
                start()
        elif not champion or champion == [version] or canary not in (None, version):
            with pytest.raises(Conflict):
                start()
        elif canary is None and (content == b"bad" or self.triton.is_away):
            with pytest.raises((ServingFailed, Unavailable)):
                start()
        else:
            start()
            self.canaries[model] = version

    @rule(model=MODELS)
    def end_canary(self, model: str) -> None:
        if not self.triton.is_away:
            assert self.canary.end(model, Note()) == (self.canaries[model] is not None)
            self.canaries[model] = None

    @rule()
    def crash_and_start(self) -> None:
        self.store.close()
        self._open()

    @rule()
    def restart_triton(self) -> None:
        self.triton.loaded.clear()
        self.triton.is_away = False
        assert self.production.reconcile() == []

    @rule()
    def lose_triton(self) -> None:
        self.triton.is_away = True

    def _pick(self, model: str, number: int) -> str:
        known = sorted(self.versions[model], key=order)
        return known[number] if number < len(known) else "9.9.9"

    def _expect(self, model: str, version: str, action: Callable[[], object]) -> None:
        content = self.versions[model].get(version)
        if content is None:
            with pytest.raises(NotFound):
                action()
        elif self.triton.is_away:
            with pytest.raises(Unavailable):
                action()
        elif content == b"bad":
            with pytest.raises(ServingFailed):
                action()
        else:
            action()
            self._push(model, version)

    def _push(self, model: str, version: str) -> None:
        stack = self.champions[model]
        if stack[-1:] != [version]:
            self.canaries[model] = None
            self.champions[model] = [other for other in stack if other != version] + [version]

    @invariant()
    def no_version_is_lost_or_changed(self) -> None:
        for model, versions in self.versions.items():
            records = self.catalog.versions(model)
            assert {record.version for record in records} == set(versions)
            assert {str(record.triton_version) for record in records} == set(self.store.folders(model))
            for record in records:
                content = (self.folder / record.folder / "model.onnx").read_bytes()
                assert content == versions[record.version]
                assert hashlib.sha256(content).hexdigest() == record.files["model.onnx"].sha256
        assert list((self.folder / ".incoming").iterdir()) == []

    @invariant()
    def the_history_tells_what_triton_serves(self) -> None:
        for model, stack in self.champions.items():
            row = self.history.champion(model)
            assert [row.version if row else None] == (stack[-1:] or [None])
            if not self.triton.is_away:
                served = self.triton.loaded.get(model)
                assert served == (row.triton_version if row else None)

    @invariant()
    def a_canary_is_served_until_production_changes(self) -> None:
        for model, version in self.canaries.items():
            row = self.history.canary(model)
            assert (row.version if row else None) == version
            if not self.triton.is_away:
                assert self.triton.loaded.get(f"{model}__canary") == (row.triton_version if row else None)

    def teardown(self) -> None:
        self.store.close()
        self.history.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def test_whatever_happens_no_version_is_lost_and_the_history_tells_what_is_served(database: Database) -> None:
    ModelStorage.database_url = database.new()
    run_state_machine_as_test(
        ModelStorage,
        settings=settings(
            max_examples=30,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,  # the same sequences in every run: a red build is about the change, not about luck
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
