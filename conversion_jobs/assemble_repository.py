"""Make a whole `model_repository_running/`, from an archive or from files, and look it over before Triton sees it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from pydantic import Field

from conversion_jobs.onnx.graph import interface, read_graph
from conversion_jobs.triton.model_config import model_config, to_text
from conversion_jobs.triton.repository_check import problems_of, requirements
from jobkit import job
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.files import atomic_directory
from jobkit.local_file import local_file
from jobkit.paths import checked_name
from jobkit.unpack import unpack

logger = logging.getLogger("conversion_jobs.assemble_repository")


class Arguments(job.Arguments):
    """Unpack a repository, or put one together from ONNX files and folders; or only look over one that is there."""

    repository: Path = Field(Path("model_repository_running"), description="the folder that Triton is started on")
    archive: str | None = Field(None, description="a zip of a repository: a file, a key in the bottle, s3://bucket/key")
    models: dict[str, Path] = Field(
        {}, description="name=file.onnx, for which a configuration is made; or name=folder, which is taken as it is"
    )
    max_batch_size: int = Field(8, ge=1, le=1024, description="for the configurations that are made")


class Result(job.Result):
    """What is there."""

    repository: Path
    models: list[str]


def run(arguments: Arguments, context: job.Context) -> Result:
    """Make the repository, unless it is there; list everything that is wrong with it at once."""
    repository = arguments.repository.absolute()
    if arguments.archive and arguments.models:
        raise ConfigurationError("give --archive or --models, not both")
    making = bool(arguments.archive or arguments.models)
    if making and repository.is_dir() and any(repository.iterdir()):
        raise ConfigurationError(f"{repository} is there already: move it away, or look it over without --archive")
    if making and repository.is_dir():
        repository.rmdir()
    if arguments.archive:
        archive = local_file(arguments.archive)
        unpack(archive, repository, check)
    elif arguments.models:
        with atomic_directory(repository) as folder:
            for name, source in arguments.models.items():
                add_model(folder, checked_name(name, "model name"), source, arguments.max_batch_size)
            check(folder)
    elif not repository.is_dir():
        raise ConfigurationError(f"{repository} is not there: give --archive or --models to make it")
    else:
        check(repository)
    names = sorted(path.name for path in repository.iterdir() if path.is_dir())
    for path in requirements(repository):
        logger.warning("%s: Triton installs no requirements; its image has to have these packages", path)
    logger.info("%s: %s", repository, ", ".join(names))
    return Result(repository=repository, models=names)


def check(folder: Path) -> None:
    """Refuse a repository with anything wrong in it.

    Raises:
        DataValidationError: the message lists everything.
    """
    if problems := problems_of(folder):
        raise DataValidationError(
            "the repository is not ready for Triton:\n" + "\n".join(f"  {line}" for line in problems)
        )


def add_model(repository: Path, name: str, source: Path, max_batch_size: int) -> None:
    """Add one model: a folder (with `config.pbtxt`, as for the Python backend) as it is, an ONNX file with a new one.

    Raises:
        DataValidationError: the source is not there, or no ONNX file.
    """
    target = repository / name
    if source.is_dir():
        shutil.copytree(source, target)
        return
    if not source.is_file():
        raise DataValidationError(f"{source}, for the model {name}, is not there")
    graph = interface(read_graph(source))
    (target / "1").mkdir(parents=True)
    shutil.copyfile(source, target / "1" / "model.onnx")
    config = model_config(graph, name, max_batch_size=max_batch_size, has_labels=False)
    (target / "config.pbtxt").write_text(to_text(config))


if __name__ == "__main__":
    job.main(Arguments, run)
