"""What can go wrong, each with the HTTP status that a client sees."""

from __future__ import annotations


class StorageError(Exception):
    """An error whose message is meant for the client."""

    status = 500


class Refused(StorageError):
    """The request or the archive is not acceptable; sending it again changes nothing."""

    status = 400


class TooLong(Refused):
    """The upload is longer than it may be."""

    status = 413


class NotTrusted(Refused):
    """A package is not signed by who may, or is no longer what was signed."""


class NotFound(StorageError):
    """There is no such model or version."""

    status = 404


class Conflict(StorageError):
    """The state of the model does not allow this now."""

    status = 409


class ServingFailed(StorageError):
    """Triton refused a model, or serves something else than it was told to."""

    status = 502


class Unavailable(StorageError):
    """PostgreSQL, Triton or the object store does not answer; nothing was changed."""

    status = 503


class OutOfSpace(StorageError):
    """The disk is full; what was received is gone, the repository is as it was."""

    status = 507
