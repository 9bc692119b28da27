"""A study of Optuna that outlives the job: in PostgreSQL, or in a file for a person alone.

Only one job at a time works on a study. Whoever holds it knows that a trial which still counts as running is one of a
job that was killed: it is marked as failed, and its parameters are tried again.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from jobkit import settings
from jobkit.database import connect
from jobkit.errors import ConfigurationError, TransientError

logger = logging.getLogger("training_jobs.tune_classifier")
SCHEMA = "tuning"
AGAIN = "again"
"""Attribute of a trial: the number of the one whose parameters it tries again."""
RUN = "mlflow_run_id"
STARTUP_TRIALS = 4  # that are never pruned


@contextmanager
def opened(
    name: str,
    content: str,
    file: Path | None,
    more_is_better: bool,
    pruner: BasePruner,
    seed: int,
) -> Iterator[optuna.Study]:
    """Yield the study `name`, made if there is none, held until the block ends.

    Args:
        name: of the study.
        content: a digest of what is compared: a study is of one set, one base configuration and one space.
        file: where the study is kept; without it in the schema `tuning` of the database.
        more_is_better: of the score.
        pruner: ends trials early.
        seed: of the sampler, together with how many trials there are.

    Raises:
        ConfigurationError: the study is of something else, or there is neither a file nor a database.
        TransientError: another job works on it, or the database cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _held(name, file):
        try:
            study = optuna.create_study(
                storage=_storage(file),
                study_name=name,
                direction="maximize" if more_is_better else "minimize",
                load_if_exists=True,
                pruner=pruner,
            )
            known = study.user_attrs.setdefault("content", content)
            if known != content:
                raise ConfigurationError(
                    f"the study {name} is of another training set, configuration or space: give another --study"
                )
            study.set_user_attr("content", content)
            study.sampler = TPESampler(seed=seed + len(study.trials))
            yield study
        except optuna.exceptions.StorageInternalError as error:
            raise TransientError(f"the study's storage failed: {error}") from error


def fail_the_dead(study: optuna.Study) -> list[FrozenTrial]:
    """Mark trials of killed jobs as failed and enqueue their parameters; return them. The study has to be held."""
    dead = [trial for trial in study.trials if trial.state == TrialState.RUNNING]
    for trial in dead:
        study.tell(trial.number, state=TrialState.FAIL)
        logger.warning("trial %d was killed after %d epochs", trial.number, len(trial.intermediate_values))
        try_again(study, trial)
    return dead


def try_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Enqueue the parameters of a trial that was broken off, unless that was their second time."""
    if AGAIN not in trial.user_attrs and trial.params:
        study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})


def pruner_of(name: str, epochs: int) -> BasePruner:
    """Return the pruner that a search file names; `epochs` is how long a whole trial is."""
    if name == "median":
        return MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=1)
    if name == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3)
    return NopPruner()


def _storage(file: Path | None) -> RDBStorage:
    if file is not None:
        return RDBStorage(f"sqlite:///{file.absolute()}")
    url = settings.require(settings.DATABASE_URL).replace("postgresql+psycopg2://", "postgresql://", 1)
    with connect() as connection, connection.cursor() as cursor:
        # CREATE SCHEMA IF NOT EXISTS would take the right to make schemas even where it is there.
        cursor.execute(
            f"DO $$ BEGIN IF to_regnamespace('{SCHEMA}') IS NULL THEN CREATE SCHEMA {SCHEMA}; END IF; END $$"
        )
    return RDBStorage(
        url.replace("postgresql://", "postgresql+psycopg2://", 1),
        engine_kwargs={"connect_args": {"options": f"-csearch_path={SCHEMA}", "connect_timeout": 10}},
    )


@contextmanager
def _held(name: str, file: Path | None) -> Iterator[None]:
    """Hold the study; the kernel or the server lets go of it when the process ends, however it does."""
    taken = TransientError(f"another job works on the study {name}")
    if file is not None:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
        with file.with_name(f".{file.name}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise taken from None
            yield
        return
    if settings.optional(settings.DATABASE_URL) is None:
        raise ConfigurationError(
            f"where is the study kept? Give --study_file FILE, or set {settings.DATABASE_URL} "
            f"({settings.PURPOSE[settings.DATABASE_URL]})"
        )
    key = int.from_bytes(hashlib.sha256(f"study {name}".encode()).digest()[:8], "big", signed=True)
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", (key,))
        if not (row := cursor.fetchone()) or not row[0]:
            raise taken
        connection.commit()  # the lock is the session's: no transaction stays open for hours
        yield
