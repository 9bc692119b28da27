"""Delete the versions in the model storage that nothing needs, of all models."""

from __future__ import annotations

import logging

from pydantic import Field

from jobkit import job
from jobkit.errors import JobError
from jobkit.model_storage import ModelStorage
from nightshift_common.options.retention import RetentionOptions
from training_jobs.scoring.history import best_of_models

logger = logging.getLogger("training_jobs.clean_models")


class Arguments(job.Arguments, RetentionOptions):
    """Delete the versions in the model storage that nothing needs, of all models.

    The storage keeps what is served, pinned, a canary, what a rollback goes to, the first that was in production, and
    what is younger than --older_than_days; the best version so far, which evaluations compare with, stays as well.
    """


class Result(job.Result):
    """What was deleted, or with --dry_run would be."""

    models: int = Field(description="how many models there are")
    deleted: dict[str, list[str]] = Field(description="model -> its versions")
    kept: int = Field(description="how many versions stay")
    freed_bytes: int


def run(arguments: Arguments, context: job.Context) -> Result:
    """Ask for each model what may go, and delete it version by version; a model that fails holds up no other one."""
    needed = best_of_models(context.bottle)
    deleted: dict[str, list[str]] = {}
    failed: list[JobError] = []
    kept = freed = 0
    with ModelStorage() as storage:
        models = storage.models()
        for model in models:
            try:
                gone, stays, size = clean(storage, model, arguments, needed.get(model, set()))
            except JobError as error:
                logger.warning("%s: %s", model, error)
                failed.append(error)
                continue
            kept, freed = kept + stays, freed + size
            if gone:
                deleted[model] = gone
    if failed:
        raise type(failed[0])(f"{len(failed)} of {len(models)} models could not be cleaned; the first: {failed[0]}")
    return Result(models=len(models), deleted=deleted, kept=kept, freed_bytes=freed)


def clean(storage: ModelStorage, model: str, arguments: Arguments, needed: set[str]) -> tuple[list[str], int, int]:
    """Delete what may go of a model, but for the versions `needed`; return it, how many stay, and its bytes."""
    days = arguments.older_than_days
    unneeded, kept = storage.unneeded(model, days)
    for version in sorted(needed & set(unneeded)):
        kept[version] = "evaluations compare with it: the best so far"
    for version, why in kept.items():
        logger.info("%s %s is kept: %s", model, version, why)
    deleted, freed = [], 0
    for version in unneeded:
        if version in kept:
            continue
        size = storage.version(model, version).size
        if not arguments.dry_run and not storage.delete(model, version, days):
            kept[version] = "needed by now"
            continue
        logger.info("%s %s %s deleted, %d bytes", model, version, "would be" if arguments.dry_run else "is", size)
        deleted.append(version)
        freed += size
    return deleted, len(kept), freed


if __name__ == "__main__":
    job.main(Arguments, run)
