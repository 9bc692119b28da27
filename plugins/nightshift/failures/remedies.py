"""What kinds of failure there are, and what the person on call does about each; docs/runbook.md goes on from here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Remedy:
    """A kind of failure in words, and what to do."""

    title: str
    text: str


REMEDIES = {
    "configuration": Remedy(
        "wrong configuration",
        "Fix the pipeline file, the training configuration or the connection that the message names; then clear the"
        " task. It is not tried again by itself.",
    ),
    "data_refused": Remedy(
        "data refused",
        "Mend what the message names; of pictures, meta/<group>/refused.jsonl in the bottle lists all that are refused."
        " The next night takes what was mended. The model in production serves on.",
    ),
    "unavailable": Remedy(
        "a server was away",
        "While tries are left, nothing. After the last one see whether the server that the message names is up again,"
        " then clear the task: it goes on where it stopped.",
    ),
    "crashed": Remedy(
        "crash",
        "One retry usually does; training goes on from its checkpoint. A crash that repeats is a bug: its traceback"
        " stands in the task's log. Out of memory: halve the batch size.",
    ),
    "timed_out": Remedy(
        "ran too long",
        "The task was ended by its time limit. See in its log how far it came; raise train.timeout_hours in the"
        " pipeline file or clear the task: training goes on from its checkpoint.",
    ),
    "lost": Remedy(
        "worker lost",
        "The worker or its machine went away before it could say why: out of memory, a restart, a cut connection. Look"
        " at the machine; then clear the task. A job that still runs is found again.",
    ),
    "marked": Remedy(
        "marked as failed by a person",
        "Somebody ended it. Clear the task to go on, or leave it to the next night.",
    ),
    "import_error": Remedy(
        "pipeline cannot be read",
        "Fix the file at the line that the message names. Until then this pipeline does not run; the others do.",
    ),
    "other": Remedy(
        "failure in Airflow",
        "The task's log has the traceback. It failed on Airflow's side, before or after its job.",
    ),
}
