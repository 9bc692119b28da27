"""What can go wrong, each with the HTTP status that a client sees."""

from __future__ import annotations


class StorageError(Exception):
    """An error whose message is meant for the client."""

    status = 500

    def body(self) -> dict[str, str]:
        """Return what the answer says."""
        return {"detail": str(self)}


class Refused(StorageError):
    """The request or the archive is not acceptable; sending it again changes nothing."""

    status = 400


class InOldWords(StorageError):
    """An error that the older service had too: told in its words, which clients look for, and the reason besides."""

    def __init__(self, words: str, cause: StorageError) -> None:
        super().__init__(str(cause))
        self.status, self._words = cause.status, words

    def body(self) -> dict[str, str]:
        """Return the old words under both keys that the old calls had for them."""
        return {"message": self._words, "detail": self._words, "reason": str(self)}


class NoZip(Refused):
    """An upload is neither a zip nor a model file."""


class AlreadyThere(Refused):
    """A version, or a folder of Triton's, exists and never changes."""


class TooLong(Refused):
    """The upload is longer than it may be."""

    status = 413


class NotTrusted(Refused):
    """A package is not signed by who may, or is no longer what was signed."""


class NotFound(StorageError):
    """There is no such model or version."""

    status = 404


class NotNamed(NotFound):
    """Nothing says which version of a model is meant."""


class Conflict(StorageError):
    """The state of the model does not allow this now."""

    status = 409


class NotProved(Conflict):
    """A version is not promoted: it does not answer as was verified, or has another interface."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(f"not promoted: {'; '.join(problems)}; 'force' promotes it all the same")
        self.problems = problems


class ServingFailed(StorageError):
    """Triton refused a model, or serves something else than it was told to."""

    status = 502


class Unavailable(StorageError):
    """PostgreSQL, Triton or the object store does not answer; nothing was changed."""

    status = 503


class OutOfSpace(StorageError):
    """The disk is full; what was received is gone, the repository is as it was."""

    status = 507
