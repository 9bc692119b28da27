"""A Triton of a job's own: empty, on the loopback interface, with a key that only the job has."""

from __future__ import annotations

import logging
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobkit.errors import ConfigurationError, DataValidationError, TransientError

logger = logging.getLogger("conversion_jobs.triton")
HOST = "127.0.0.1"
KEY_HEADER = "nightshift-triton-key"  # the server puts a prefix before it for gRPC
START_SECONDS = 120.0
LAST_CHARACTERS = 2000


@dataclass(frozen=True)
class TritonControl:
    """The repository calls of one Triton by gRPC.

    Every call raises `TransientError` where it does not answer, `DataValidationError` where it refuses, and
    `ConfigurationError` where it asks for another key.
    """

    address: str
    key: str | None = None

    @property
    def _headers(self) -> dict[str, str]:
        return {} if self.key is None else {f"triton-grpc-protocol-{KEY_HEADER}": self.key}

    def load(self, name: str, config: str, file_name: str, content: bytes) -> None:
        """Load a model from this call: its configuration (JSON) and its file, of version 1."""
        files = {f"file:1/{file_name}": content}
        self._ask(f"load {name}", "load_model", name, headers=self._headers, config=config, files=files)

    def unload(self, name: str) -> None:
        """Take a model out and wait until it is gone: loaded again while it is there, its old file would serve on."""
        self._ask(f"unload {name}", "unload_model", name, headers=self._headers)
        deadline = time.monotonic() + START_SECONDS
        while name in self.ready_models():
            if time.monotonic() > deadline:
                raise TransientError(f"Triton at {self.address} did not unload {name} in {START_SECONDS:g} s")
            time.sleep(0.05)

    def ready_models(self) -> list[str]:
        """Return what it serves."""
        index = self._ask("list its models", "get_model_repository_index", headers=self._headers)
        return sorted({entry.name for entry in index.models if entry.state == "READY"})

    def version(self) -> str:
        """Return the server's version."""
        return str(self._ask("say its version", "get_server_metadata").version)

    def _ask(self, what: str, call: str, *arguments: Any, **options: Any) -> Any:
        from tritonclient.grpc import InferenceServerClient
        from tritonclient.utils import InferenceServerException

        client = InferenceServerClient(self.address)
        try:
            return getattr(client, call)(*arguments, client_timeout=START_SECONDS, **options)
        except InferenceServerException as error:
            message = f"Triton at {self.address} did not {what}: {error.message()}"
            if "protocol is restricted" in message:  # which has the status of a server that is away
                raise ConfigurationError(f"{message}; --key_file names the file with the key") from error
            if str(error.status()) in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED"):
                raise TransientError(message) from error
            raise DataValidationError(message) from error
        finally:
            client.close()


@contextmanager
def temporary_triton(command: Sequence[str], log: Path) -> Iterator[TritonControl]:
    """Start `command`, which takes the arguments of NVIDIA's `tritonserver`, and stop it when the block ends.

    Raises:
        ConfigurationError: there is no such program, or it ends at once; the message ends with its log.
        TransientError: it does not answer in time.
    """
    key, port = secrets.token_hex(24), _free_port()
    restriction = f"model-repository,shared-memory,logging,trace:{KEY_HEADER}={key}"
    with tempfile.TemporaryDirectory(prefix="nightshift-triton-") as repository, log.open("ab") as output:
        arguments = [
            f"--model-repository={repository}", "--model-control-mode=explicit", "--disable-auto-complete-config",
            "--strict-readiness=false", "--allow-http=false", "--allow-metrics=false", "--exit-timeout-secs=5",
            f"--grpc-address={HOST}", f"--grpc-port={port}", f"--grpc-restricted-protocol={restriction}",
        ]  # fmt: skip
        try:
            process = subprocess.Popen(  # in the job's process group: what ends the job ends it too
                [*command, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise ConfigurationError(
                f"{command[0]} cannot be run: {error}; name a Triton that runs by --url, or a program by --server"
            ) from error
        try:
            control = TritonControl(f"{HOST}:{port}", key)
            _wait_ready(control, process, log)
            yield control
        finally:
            _stop(process)


def _wait_ready(control: TritonControl, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        if (code := process.poll()) is not None:
            raise ConfigurationError(f"the Triton of this job ended with code {code}: {_end_of(log)}")
        try:
            version = control.version()
        except TransientError as error:
            if time.monotonic() > deadline:
                raise TransientError(f"{error}; its log ends: {_end_of(log)}") from error
            time.sleep(0.1)
        else:
            logger.info("a Triton %s of this job's own answers", version)
            return


def _stop(process: subprocess.Popen[bytes], patience: float = 20.0) -> None:
    """Ask it to end, then kill it and the processes that its backends have."""
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        tasks = Path(f"/proc/{process.pid}/task")
        children = [int(pid) for path in tasks.glob("*/children") for pid in path.read_text().split()]
        process.kill()
        process.wait()
        for child in children:
            subprocess.run(["kill", "-9", str(child)], check=False, capture_output=True)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-LAST_CHARACTERS:].strip()
