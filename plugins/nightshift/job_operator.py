"""The operator that runs one job and survives the worker that runs the operator."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import BaseOperator, BaseOperatorLink, ResumableJobMixin
from airflow.sdk._shared.secrets_masker import redact
from airflow.sdk.exceptions import AirflowSkipException, DownstreamTasksSkipped
from airflow.sdk.log import mask_secret

from nightshift.connections import JobEnvironment, resolve
from nightshift.errors import JobFailed, failure
from nightshift.launchers.base import JobSpec, Status, command_options
from nightshift.launchers.registry import launcher
from nightshift_common.task_instance import TRIGGERED_BY, TaskInstanceKey

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context
    from pydantic import JsonValue

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class MlflowLink(BaseOperatorLink):
    """The job's run in MLflow, there as soon as the job has started it."""

    name = "MLflow run"

    @property
    def xcom_key(self) -> str:
        """The key under which the link is pushed while the job runs."""
        return "mlflow_run_url"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """Return nothing new: the running operator has pushed the link already."""
        return getattr(operator, "_mlflow_url", "")


class JobOperator(ResumableJobMixin, BaseOperator):
    """Run `python -m <module> --option value …` apart from the worker, follow it, and return its result.

    A worker that dies does not end the job: the retry finds it by its task instance and attaches again. Ending the task
    ends the job and all that it started. A result with `stop_here` skips the tasks that follow, except those that run
    whatever happened (trigger rule `all_done`).

    Args:
        module: the job.
        options: its options by name; templated. None and "" are left out, True and False become flags, lists and
            dicts JSON.
        options_from_params: option -> parameter of the run, whose value goes to the job with its type.
        only_if_param: the task is skipped where this parameter of the run is false.
        runtime: which interpreter (or image) runs it; templated.
        gpus: how many GPUs it gets where there are any, and so how many slots of its pool it takes.
        connections: which of the `nightshift_<name>` connections it gets, as environment variables.
        skips: the tasks that a `stop_here` skips.
    """

    template_fields: Sequence[str] = ("module", "options", "runtime")  # so the UI shows them
    external_id_key = "nightshift_job"
    operator_extra_links = (MlflowLink(),)
    ui_color = "#eef4ff"

    def __init__(
        self,
        *,
        module: str,
        options: dict[str, Any] | None = None,
        options_from_params: dict[str, str] | None = None,
        only_if_param: str | None = None,
        runtime: str = "jobs",
        gpus: int = 1,
        connections: Sequence[str] = (),
        skips: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        # Each field of the result is an XCom of its own.
        super().__init__(multiple_outputs=True, pool_slots=gpus, **kwargs)
        self.module = module
        self.options = options or {}
        self.options_from_params = options_from_params or {}
        self.only_if_param = only_if_param
        self.runtime = runtime
        self.gpus = gpus
        self.connections = list(connections)
        self.skips = list(skips)
        self._environment = JobEnvironment()
        self._job_id: str | None = None
        self._is_killed = False
        self._mlflow_url = ""

    def execute(self, context: Context) -> Any:
        """Run or adopt the job; return its result."""
        if self.only_if_param and not context["params"][self.only_if_param]:
            raise AirflowSkipException(f"the run was started with {self.only_if_param} = false")
        self._environment = resolve(self.connections)
        for secret in self._environment.masked():
            mask_secret(secret)  # what a job prints stands in the task's log as well
        # What was stored before a clear counts no longer: a task that was cleared runs again.
        self.external_id_key = f"nightshift_job_since_try_{self._first_try(context)}"
        result: dict[str, Any] = self.execute_resumable(context)
        stop_here = result.get("stop_here")
        if stop_here and self.skips:
            self.log.info("%s: %s", stop_here["outcome"], stop_here["reason"])
            context["ti"].xcom_push(key="return_value", value=result)
            raise DownstreamTasksSkipped(tasks=self.skips)  # type: ignore[no-untyped-call]
        return result

    def on_kill(self) -> None:
        """End the job: Airflow allows five seconds."""
        self._is_killed = True
        if self._job_id:
            launcher().stop(self._job_id)

    def submit_job(self, context: Context) -> JsonValue:
        """Start the job, unless an earlier try of this task did and its worker died before it could say so."""
        task_instance = self._key(context)
        jobs = launcher()
        found = jobs.find(task_instance, self._first_try(context))
        if found and self.is_job_active(self.get_job_status(found, context)):
            self.log.info("adopting the job %s: an earlier worker started it and died", found)
            return found
        if found := jobs.find(task_instance):
            jobs.stop(found)  # what may be left of it, where only its shell was killed: one job at a time
        options = self.options | {name: context["params"][key] for name, key in self.options_from_params.items()}
        spec = JobSpec(
            self.module,
            command_options(options),
            self.runtime,
            task_instance,
            self._environment.variables | _triggered_by(context),
            self._environment.secrets,
            self.gpus,
        )
        self._job_id = jobs.start(spec)
        if self._is_killed:  # the request came before there was a job to end
            jobs.stop(self._job_id)
        self.log.info("started %s: %s %s", self._job_id, self.module, " ".join(spec.options))
        return self._job_id

    def get_job_status(self, external_id: JsonValue, context: Context) -> str:
        """Return where the job is; one that ended well but left no result has failed."""
        jobs, job_id = launcher(), str(external_id)
        status = jobs.status(job_id)
        return Status.FAILED if status is Status.SUCCEEDED and jobs.result(job_id) is None else status

    def is_job_active(self, status: str) -> bool:
        """Whether to attach to the job: also to one that ended well meanwhile, to show its lines and its link."""
        return status in (Status.RUNNING, Status.SUCCEEDED)

    def is_job_succeeded(self, status: str) -> bool:
        """Whether the job ended well."""
        return status == Status.SUCCEEDED

    def poll_until_complete(self, external_id: JsonValue, context: Context) -> Any:
        """Show the job's lines until it ends; return its result, or raise what its exit code stands for."""
        self._job_id = str(external_id)
        jobs = launcher()
        reason, last_line = "", "the job wrote nothing"
        for line in jobs.follow_logs(self._job_id):
            event = self._show(line, context)
            if event.get("event") == "error":
                reason = _reason(event)
            elif not event and line.strip():
                last_line = f"its last words: {str(redact(line)).strip()[:500]}"
        ended = jobs.ended(self._job_id)
        if ended.succeeded:
            return self.get_job_result(self._job_id, context)
        raise failure(ended, f"{self.module}: {reason or last_line} ({ended.describe()})")

    def get_job_result(self, external_id: JsonValue, context: Context) -> Any:
        """Return the job's result."""
        content = launcher().result(str(external_id))
        if content is None:
            raise JobFailed(f"{self.module} ended with 0 but left no result.json in {external_id}")
        return content["result"]

    def _first_try(self, context: Context) -> int:
        """Return the first try since the task instance was made or cleared: a clear adds tries to `max_tries`."""
        ti = context["ti"]
        return max(1, min(ti.try_number, (ti.max_tries or 0) - (self.retries or 0) + 1))

    def _key(self, context: Context) -> TaskInstanceKey:
        ti = context["ti"]
        return TaskInstanceKey(
            ti.dag_id, ti.run_id, ti.task_id, -1 if ti.map_index is None else ti.map_index, ti.try_number
        )

    def _show(self, line: str, context: Context) -> dict[str, Any]:
        """Write a job's line to the task's log; return it as a dictionary, empty where it is plain text."""
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or "message" not in event:
            self.log.info("%s", redact(line))
            return {}
        # The supervisor hides secrets in the task's log file, but its own console shows the lines as they are.
        event = cast("dict[str, Any]", redact(event))
        self.log.log(LEVELS.get(str(event.get("level")), logging.INFO), "%s", event["message"])
        if exception := event.get("exception"):
            self.log.error("%s", exception)
        if event.get("event") == "tracking":
            self._mlflow_url = str(event["url"])
            context["ti"].xcom_push(key=MlflowLink().xcom_key, value=self._mlflow_url)
        return event


def _triggered_by(context: Context) -> dict[str, str]:
    user = context["dag_run"].triggering_user_name
    return {TRIGGERED_BY: user} if user else {}


def _reason(event: dict[str, Any]) -> str:
    """Return the message of an error event; of a crash also the last line of its traceback."""
    message = str(event.get("message", ""))
    last = str(event.get("exception") or "").strip().rpartition("\n")[2]
    return message if not last or last in message or message in last else f"{message}: {last}"
