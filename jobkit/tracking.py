"""MLflow tracking that never loses a run silently.

The parent run is the DAG run, each job is a child run; runs are found by tags, so that a retry resumes its run and
never starts a second one. Metrics are kept until the server has taken them: a job whose metrics cannot be delivered
ends with `TransientError`, never as a success without its numbers.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jobkit import settings
from jobkit.errors import ConfigurationError, TransientError
from jobkit.paths import SnapshotPaths
from jobkit.provenance import commit, environment_of_process, lock_sha256, module, user
from nightshift_common.task_instance import VARIABLE, TaskInstanceKey

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunInfo

logger = logging.getLogger("jobkit.tracking")

PARENT_TAG = "mlflow.parentRunId"
DAG_RUN_TAG = "nightshift.dag_run"
TASK_TAG = "nightshift.task"
COMMIT_TAG = "mlflow.source.git.commit"  # MLflow's own names, which its UI shows
USER_TAG, SOURCE_TAG, SOURCE_TYPE_TAG = "mlflow.user", "mlflow.source.name", "mlflow.source.type"
LOCK_TAG = "nightshift.lock_sha256"
TRAINS_TAG = "nightshift.trains"  # of the run of a training: the experiment that it makes, with its bottle
NOTE_TAG = "mlflow.note.content"  # MLflow's own name: the description that its UI shows, Markdown
EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI shows training, not chats
SETTLE_SECONDS = 0.3  # after which a run that another job made can be seen by all; a server answers in 0.02
SLOWEST_STORE = 5 << 20  # bytes a second at which MLflow's server puts an artifact into its store, at least
SETTLE_CALLS = 4  # on a busy machine: so many times what our own calls took


def task_instance_of_environment() -> TaskInstanceKey | None:
    """Return the key in `NIGHTSHIFT_TASK_INSTANCE`, or None for a job that was started by hand.

    Raises:
        ConfigurationError: it is not valid.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    try:
        return TaskInstanceKey.from_json(text)
    except ValueError as error:
        raise ConfigurationError(f"{VARIABLE} is not valid: {error}") from error


@contextmanager
def server_errors(doing: str) -> Iterator[None]:
    """Turn what MLflow and the network raise into `TransientError`, or `ConfigurationError` where a retry is vain."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code in ("INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "BAD_REQUEST"):
            raise ConfigurationError(f"MLflow refused {doing}: {error}") from error
        raise TransientError(f"MLflow failed {doing}: {error}") from error
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        raise TransientError(f"MLflow did not answer {doing}: {error}") from error


def client() -> MlflowClient:
    """Return a client for `MLFLOW_TRACKING_URI` that gives up after about ten seconds, not after minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # standard output is for log lines
    from mlflow import MlflowClient

    uri = settings.require(settings.MLFLOW_URI)
    if not uri.startswith(("http://", "https://")):
        raise ConfigurationError(f"{settings.MLFLOW_URI}={uri} is not the address of a server: http://host:port")
    return MlflowClient(tracking_uri=uri)


class Run:
    """One MLflow run that a job writes to."""

    def __init__(self, client_: MlflowClient, run_id: str, experiment_id: str, parent_id: str | None) -> None:
        self.client, self.run_id, self.experiment_id, self.parent_id = client_, run_id, experiment_id, parent_id
        self.pending: list[Metric] = []  # what the server has not taken yet
        self._last_flush = time.monotonic()

    @property
    def url(self) -> str:
        """The run's page in the MLflow UI (`NIGHTSHIFT_MLFLOW_UI` where the browser uses another address)."""
        base = urlsplit(settings.optional("NIGHTSHIFT_MLFLOW_UI") or settings.require(settings.MLFLOW_URI))
        shown = base._replace(netloc=base.netloc.rpartition("@")[2]).geturl()  # the jobs' password is no browser's
        return f"{shown.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.run_id}"

    @classmethod
    def start(cls, task_instance: TaskInstanceKey | None) -> Run:
        """Find or make the run of this job, and say where it is on a log line."""
        from mlflow.entities import RunTag

        api = client()
        origin = {
            **_source(module(), task_instance),
            COMMIT_TAG: commit(),
            LOCK_TAG: lock_sha256(environment_of_process()),
        }
        with server_errors("starting the run"):
            run = cls._by_hand(api) if task_instance is None else cls._child(api, task_instance)
            api.update_run(run.run_id, status="RUNNING")
            api.log_batch(run.run_id, tags=[RunTag(name, value) for name, value in origin.items() if value])
        run.say_where()
        return run

    @classmethod
    def parent(cls, task_instance: TaskInstanceKey) -> Run:
        """Find or make the run that stands for the DAG run."""
        api = client()
        with server_errors("finding the DAG run's run"):
            experiment = _experiment(api, task_instance.dag_id)
            run_id = _find_or_create(
                api, experiment, task_instance.run_id, {DAG_RUN_TAG: task_instance.run_id, TASK_TAG: ""}
            )
        return cls(api, run_id, experiment, None)

    @classmethod
    def _child(cls, api: MlflowClient, task_instance: TaskInstanceKey) -> Run:
        from mlflow.entities import RunTag

        parent = cls.parent(task_instance)
        tags = {DAG_RUN_TAG: task_instance.run_id, TASK_TAG: task_instance.task, PARENT_TAG: parent.run_id}
        run_id = _find_or_create(api, parent.experiment_id, task_instance.task, tags)
        api.set_tag(run_id, "nightshift.try_number", str(task_instance.try_number))
        night = _source(task_instance.dag_id, task_instance)
        api.log_batch(parent.run_id, tags=[RunTag(name, value) for name, value in night.items()])
        return cls(api, run_id, parent.experiment_id, parent.run_id)

    @classmethod
    def _by_hand(cls, api: MlflowClient) -> Run:
        experiment = _experiment(api, "by_hand")
        resumed = os.environ.get("MLFLOW_RUN_ID")
        return cls(api, resumed or api.create_run(experiment).info.run_id, experiment, None)

    def say_where(self) -> None:
        """Write the line by which Airflow links the task to this run."""
        logger.info("MLflow run: %s", self.url, extra={"event": "tracking", "run_id": self.run_id, "url": self.url})

    def started_at(self) -> datetime:
        """Return when the run was made, UTC."""
        with server_errors("reading the run"):
            made = self.client.get_run(self.run_id).info.start_time  # milliseconds
        return datetime.fromtimestamp(made / 1000, UTC)

    def parent_run(self) -> Run | None:
        """Return the run that stands for the DAG run; None for a job that was started by hand."""
        return Run(self.client, self.parent_id, self.experiment_id, None) if self.parent_id else None

    def child(self, name: str) -> Run:
        """Make a run below this one."""
        with server_errors("starting a run"):
            made = self.client.create_run(self.experiment_id, run_name=name, tags={PARENT_TAG: self.run_id})
        return Run(self.client, made.info.run_id, self.experiment_id, self.run_id)

    def killed(self) -> None:
        """End the run as one whose process was killed."""
        with server_errors("ending the run of a killed job"):
            self.client.set_terminated(self.run_id, "KILLED")

    def another(self, run_id: str, experiment_id: str) -> Run:
        """Return another run on the same server."""
        return Run(self.client, run_id, experiment_id, None)

    def params(self, values: Mapping[str, Any], prefix: str = "") -> None:
        """Log parameters, nested mappings as dotted names.

        MLflow's parameters are immutable: a retry that logs another value would fail, so changed ones become tags.
        """
        from mlflow.entities import Param, RunTag

        flat = dict(_flatten(values, prefix))
        with server_errors("logging parameters"):
            known = self.client.get_run(self.run_id).data.params
            fresh = [Param(key, value[:6000]) for key, value in flat.items() if key not in known]
            changed = [RunTag(f"retry.{k}", v[:5000]) for k, v in flat.items() if k in known and known[k] != v[:6000]]
            for start in range(0, len(fresh), 100):
                self.client.log_batch(self.run_id, params=fresh[start : start + 100])
            if changed:
                self.client.log_batch(self.run_id, tags=changed[:100])

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags on the run."""
        from mlflow.entities import RunTag

        with server_errors("setting tags"):
            self.client.log_batch(self.run_id, tags=[RunTag(k, str(v)[:5000]) for k, v in values.items()])

    def dataset(self, name: str, snapshot_id: str, source: str, context: str) -> None:
        """Say which snapshot the run used, and for what: `training` or `evaluation`."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        used = Dataset(name=name, digest=snapshot_id, source_type="bottle", source=json.dumps({"uri": source}))
        with server_errors("logging the dataset"):
            self.client.log_inputs(self.run_id, [DatasetInput(used, [InputTag("mlflow.data.context", context)])])

    def training_of(
        self, experiment: str, group: str, snapshot_id: str | None, bottle: str, params: Mapping[str, Any]
    ) -> None:
        """Say that this run trains `experiment`, on what, and with what.

        The few `params` by which a person tells trainings apart go to the DAG run's run too, where two nights are
        compared; this run's own parameters are logged apart from them. Without a snapshot there is no dataset to name.
        """
        self.tags(
            {
                TRAINS_TAG: _findable(f"{bottle}/{experiment}"),
                "experiment": experiment,
                "snapshot_id": snapshot_id or "",
            }
        )
        night = self.parent_run()
        if night is not None:
            night.params({"group": group, "snapshot_id": snapshot_id or "", "experiment": experiment, **params})
        if snapshot_id:
            source = f"{bottle}/{SnapshotPaths(group, snapshot_id).folder}"
            for run in filter(None, (self, night)):
                run.dataset(group, snapshot_id, source, "training")

    def describe(self, text: str, name: str | None = None) -> None:
        """Give the run its description, Markdown, and where one is given its name in lists."""
        self.tags({NOTE_TAG: text})
        if name is not None:
            with server_errors("naming the run"):
                self.client.update_run(self.run_id, name=name)

    @contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Log what the block takes of CPU, memory, disk, network and GPUs every ten seconds, as `system/...`.

        MLflow measures and sends these in a thread of its own; where it cannot, the work goes on without them.
        """
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            make: Any = SystemMetricsMonitor  # without types
            monitor = make(self.run_id, resume_logging=True, tracking_uri=settings.require(settings.MLFLOW_URI))
        except Exception as error:  # noqa: BLE001 - a training is worth more than these numbers
            logger.warning("no system metrics: %s", error)
            yield
            return
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step. A server that is away for a while does not stop the job: they are sent later."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.pending += [Metric(key, float(value), now, step) for key, value in values.items()]
        if time.monotonic() - self._last_flush < 2.0:  # a request an epoch is plenty, one a batch is too many
            return
        try:
            self.flush()
        except TransientError as error:
            logger.warning("%s; %d values are kept and sent later", error, len(self.pending))

    def flush(self) -> None:
        """Send what is pending.

        Raises:
            TransientError: the server did not take it; nothing is lost.
        """
        self._last_flush = time.monotonic()
        with server_errors("logging metrics"):
            while self.pending:
                self.client.log_batch(self.run_id, metrics=self.pending[:1000])
                del self.pending[:1000]

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Upload a file, or every file of a directory, to the run's artifacts."""
        with server_errors(f"uploading {path.name}"):
            if path.is_dir():
                self.client.log_artifacts(self.run_id, str(path), folder)
            else:
                self.client.log_artifact(self.run_id, str(path), folder)

    def large_artifact(self, path: Path, folder: str, name: str) -> None:
        """Upload a file as `<folder>/<name>`, unless it is there with its size: a retry sends no model twice."""
        size = path.stat().st_size
        with server_errors(f"uploading {name}"):
            for found in self.client.list_artifacts(self.run_id, folder):
                if (found.path, found.file_size) == (f"{folder}/{name}", size):
                    return
            with _patience(size), tempfile.TemporaryDirectory(prefix="nightshift-artifact-") as scratch:
                named = Path(scratch) / name
                named.symlink_to(path.resolve())
                self.client.log_artifact(self.run_id, str(named), folder)

    def text(self, text: str, name: str) -> None:
        """Upload `text` as the artifact `name`."""
        with server_errors(f"uploading {name}"):
            self.client.log_text(self.run_id, text, name)

    def dictionary(self, value: Mapping[str, Any], name: str) -> None:
        """Upload `value` as the JSON artifact `name`."""
        self.text(json.dumps(value, indent=2, default=str) + "\n", name)

    def end_children(self) -> None:
        """End the runs of jobs that were killed before they could end them themselves, as killed."""
        query = f"tags.`{PARENT_TAG}` = '{self.run_id}' and attributes.status = 'RUNNING'"
        with server_errors("ending the runs of killed jobs"):
            for child in self.client.search_runs([self.experiment_id], query, max_results=500):
                self.client.set_terminated(child.info.run_id, "KILLED")

    def end(self, succeeded: bool) -> None:
        """Send what is pending and end the run; a failed job's own error is never hidden by MLflow's."""
        try:
            self.flush()
            with server_errors("ending the run"):
                self.client.set_terminated(self.run_id, "FINISHED" if succeeded else "FAILED")
        except (TransientError, ConfigurationError):
            if succeeded:
                raise
            logger.warning("MLflow could not be told that the run failed")


def training_run(api: MlflowClient, bottle: str, experiment: str) -> RunInfo | None:
    """Return the run that trained an experiment of a bottle, the latest of several; None for one that came otherwise.

    Raises:
        TransientError: MLflow does not answer.
    """
    with server_errors(f"looking for the training of {experiment}"):
        places = [found.experiment_id for found in api.search_experiments()]
        query = f"tags.`{TRAINS_TAG}` = '{_findable(f'{bottle}/{experiment}')}'"
        found = api.search_runs(places, query, order_by=["attributes.start_time DESC"], max_results=1)
    return found[0].info if found else None


@contextmanager
def _patience(size: int) -> Iterator[None]:
    """Wait longer for the answer to an upload of so many bytes: the server passes them on before it answers."""
    usual = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(int(usual) + size // SLOWEST_STORE)
    try:
        yield
    finally:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = usual


def _experiment(api: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    if found := api.get_experiment_by_name(name):
        if found.lifecycle_stage == "deleted":  # by a person, who may empty the bin; a run tonight is new all the same
            api.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
    try:
        return str(api.create_experiment(name, tags=EXPERIMENT_KIND))
    except MlflowException as error:
        if error.error_code == "RESOURCE_ALREADY_EXISTS" and (found := api.get_experiment_by_name(name)):
            return str(found.experiment_id)  # another job made it in between
        raise


def _find_or_create(api: MlflowClient, experiment: str, name: str, tags: Mapping[str, str]) -> str:
    """Return the oldest run with these tags, made if there is none.

    MLflow has no way to make a run only if there is none. Jobs that make that of their DAG run at the same time wait
    until each other's can be seen, then all take the oldest; those who made another delete theirs.
    """
    stored = {key: _findable(value) for key, value in tags.items() if value}
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in stored.items())
    wanted_task = stored.get(TASK_TAG, "")

    def oldest() -> RunInfo | None:
        runs = api.search_runs([experiment], query, order_by=["attributes.start_time ASC"], max_results=500)
        found = [r.info for r in runs if r.data.tags.get(TASK_TAG, "") == wanted_task]
        return min(found, key=lambda info: (info.start_time, info.run_id), default=None)

    created, asked = None, time.monotonic()
    if (first := oldest()) is None:
        created = first = api.create_run(experiment, run_name=name, tags=stored).info
    # Another job's run that was asked for before this one is there once as long a call as ours has come back.
    settle = max(SETTLE_SECONDS, SETTLE_CALLS * (time.monotonic() - asked))
    if not wanted_task and time.time() - first.start_time / 1000 < settle:  # a task runs once at a time
        time.sleep(settle)
        first = oldest() or first
    if created and first.run_id != created.run_id:
        api.delete_run(created.run_id)
    return str(first.run_id)


def _source(name: str, task_instance: TaskInstanceKey | None) -> dict[str, str]:
    """Return the tags that say what made a run, and for whom."""
    return {USER_TAG: user(task_instance), SOURCE_TAG: name, SOURCE_TYPE_TAG: "JOB"}


def _findable(value: str) -> str:
    """Return a tag's value as it can be looked for: a filter has no way to write quotes."""
    return re.sub(r"['\"\\\\]", "_", value)


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from _flatten(value, name)
        else:
            yield name, str(value)
