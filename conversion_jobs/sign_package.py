"""Sign a package that was made by hand, so that a model storage which asks for signatures takes it."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import Field

from conversion_jobs.publishing.signature import KeySigner, Signer, sign_archive, signer_of_settings
from jobkit import job, settings
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.files import atomic_file, sha256_of
from jobkit.paths import checked_name
from nightshift_common.names import ModelName

logger = logging.getLogger("conversion_jobs.sign_package")


class Arguments(job.Arguments):
    """Sign a flat zip for the model storage with the key in `--key`, or in `NIGHTSHIFT_SIGNING_KEY`.

    Without a key by `NIGHTSHIFT_SIGNING_TOKEN`, the token of an identity provider: docs/security.md.
    """

    model_name: ModelName = Field(description="the model that it will be a version of, and no other")
    archive: Path = Field(description="the zip: model.onnx or model.plan, meta.json, files beside them")
    key: Path | None = Field(None, description="file with the private key, EC on P-256, in PEM")
    output: Path | None = Field(None, description="the signed zip; by default it takes the place of the archive")


class Result(job.Result):
    """What can be uploaded now."""

    archive: str
    sha256: str


def run(arguments: Arguments, context: job.Context) -> Result:
    """Write the signed package whole, or not at all."""
    model = checked_name(arguments.model_name, "model name")
    signer = _signer() if arguments.key is None else KeySigner(_read(arguments.key))
    if not arguments.archive.is_file():
        raise DataValidationError(f"{arguments.archive} is no file")
    output = arguments.output or arguments.archive
    with atomic_file(output) as target:
        sign_archive(arguments.archive, target, model, signer, None)
    logger.info("%s is signed for the model %s", output, model)
    return Result(archive=str(output), sha256=sha256_of(output))


def _signer() -> Signer:
    return signer_of_settings() or KeySigner(settings.require(settings.SIGNING_KEY))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--key {path} cannot be read: {error}") from error


if __name__ == "__main__":
    job.main(Arguments, run)
