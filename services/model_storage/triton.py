"""The calls to Triton's repository API, by gRPC: over HTTP a load would block every other HTTP connection."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from services.model_storage.errors import ServingFailed, Unavailable
from services.model_storage.repository.record import BESIDE

ASK_SECONDS = 5.0
KEY_HEADER = "triton-grpc-protocol-nightshift-triton-key"
RECONNECT_MS = 200
_RECONNECT = [(f"grpc.{which}_reconnect_backoff_ms", RECONNECT_MS) for which in ("initial", "min", "max")]


class Triton:
    """One Triton server in explicit mode; `key_file` has the key that its repository calls ask for.

    The key is made anew at each start of Triton: it is read at each call, so a restarted Triton is followed.
    Every call raises `Unavailable` where the server does not answer and `ServingFailed` where it refuses.
    """

    def __init__(self, address: str, load_seconds: float, key_file: Path | None = None) -> None:
        self.address = address
        self._load_seconds = load_seconds
        self._key_file = key_file
        self._client = InferenceServerClient(address, channel_args=_RECONNECT)

    def is_ready(self) -> bool:
        """Whether the server answers and is ready, and there is a key for it."""
        try:
            self._headers()
            return bool(self._client.is_server_ready(client_timeout=ASK_SECONDS))
        except (InferenceServerException, Unavailable):
            return False

    def load(self, model: str) -> None:
        """Load `model` as its configuration on the disk says; return once Triton says that it is loaded."""
        self._ask(f"load {model}", self._client.load_model, model, client_timeout=self._load_seconds)

    def unload(self, model: str) -> None:
        """Take `model` out of Triton; nothing happens where it is not loaded."""
        self._ask(f"unload {model}", self._client.unload_model, model, client_timeout=self._load_seconds)

    def index(self) -> list[dict[str, str]]:
        """Return Triton's repository index: `name`, and for models that were loaded `version`, `state`, `reason`."""
        answer = self._ask("list the models", self._client.get_model_repository_index, client_timeout=ASK_SECONDS)
        entries = []
        for entry in answer.models:
            named = {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
            entries.append({key: value for key, value in named.items() if value})
        return [entry for entry in entries if not entry["name"].startswith(".")]

    def served(self) -> dict[str, list[int]]:
        """Return the ready versions of every model that has one."""
        ready: dict[str, list[int]] = {}
        for entry in self.index():
            if entry.get("state") == "READY":
                ready.setdefault(entry["name"], []).append(int(entry["version"]))
        return ready

    def check_serves(self, model: str, number: int) -> None:
        """Check by the index and by the served model itself that exactly the version `number` is served.

        Raises:
            ServingFailed: it is not; the message says what is.
        """
        listed = self.served().get(model, [])
        if listed != [number]:
            states = [entry for entry in self.index() if entry["name"] == model]
            raise ServingFailed(f"Triton should serve version {number} of {model}; its index says: {states}")
        ready = self._ask(
            f"ask for {model}", self._client.is_model_ready, model, str(number), client_timeout=ASK_SECONDS
        )
        metadata = self._ask(f"ask for {model}", self._client.get_model_metadata, model, client_timeout=ASK_SECONDS)
        if not ready or list(metadata.versions) != [str(number)]:
            raise ServingFailed(
                f"Triton's index says that version {number} of {model} is ready, but what it serves is version "
                f"{', '.join(metadata.versions) or 'none'}"
            )

    def serve(self, model: str, number: int) -> None:
        """Load `model` and check that exactly the version `number` is served."""
        self.load(model)
        self.check_serves(model, number)

    def config(self, model: str) -> Any:
        """Return the configuration that a model is served by, with what Triton has completed."""
        answer = self._ask(f"ask for {model}", self._client.get_model_config, model, client_timeout=ASK_SECONDS)
        return answer.config

    def infer(self, model: str, inputs: Mapping[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], str]:
        """Send inputs to a model; return its outputs by name, and the version that answered."""
        tensors = []
        for name, array in inputs.items():
            tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        answer = self._ask(f"answer for {model}", self._client.infer, model, tensors, client_timeout=self._load_seconds)
        said = answer.get_response()
        return {output.name: answer.as_numpy(output.name) for output in said.outputs}, str(said.model_version)

    def answered(self, model: str, number: int) -> tuple[int, int, int]:
        """Return the requests that the version `number` has answered since it was loaded, those that failed, and the
        nanoseconds that the answered ones took, their time in the queue included.
        """
        what, call = f"count the answers of {model}", self._client.get_inference_statistics
        answer = self._ask(what, call, model, str(number), client_timeout=ASK_SECONDS)
        stats = answer.model_stats[0].inference_stats
        return int(stats.success.count), int(stats.fail.count), int(stats.success.ns)

    def has_lost(self, model: str, number: int) -> bool:
        """Whether the server answers and does not serve the version `number` of `model`."""
        try:
            return not self._client.is_model_ready(model, str(number), client_timeout=ASK_SECONDS)
        except InferenceServerException as error:
            return str(error.status()) not in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")

    def show(self, entry: str, picture: bytes) -> tuple[list[str], list[float]]:
        """Send an encoded picture to an entry for pictures; return the likeliest classes and their probabilities."""
        tensor = InferInput("picture", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[picture]], np.object_))
        what = f"say what {entry} sees"
        answer = self._ask(what, self._client.infer, entry, [tensor], client_timeout=self._load_seconds)
        labels, probabilities = answer.as_numpy("labels")[0], answer.as_numpy("label_probabilities")[0]
        return [label.decode() for label in labels], [float(value) for value in probabilities]

    def _ask(self, what: str, call: Any, *arguments: Any, **options: Any) -> Any:
        for attempt in (1, 2):
            try:
                return call(*arguments, headers=self._headers(), **options)
            except InferenceServerException as error:
                status, message = str(error.status()), f"Triton at {self.address} did not {what}: {error.message()}"
                if status not in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED"):
                    raise ServingFailed(message) from error
                if status == "StatusCode.DEADLINE_EXCEEDED" or attempt == 2:
                    raise Unavailable(message) from error
                time.sleep(2 * RECONNECT_MS / 1000)  # it may be back: gRPC does not look before its own pause is over
        raise AssertionError("unreachable")

    def _headers(self) -> dict[str, str]:
        if self._key_file is None:
            return {}
        try:
            return {KEY_HEADER: self._key_file.read_text().strip()}
        except OSError as error:
            raise Unavailable(
                f"there is no key for Triton at {self.address}, which its start leaves: {error}"
            ) from error


class Served:
    """What each server served when it was asked."""

    def __init__(self, servers: list[dict[str, list[int]]]) -> None:
        self._servers = servers

    def exactly(self, model: str, number: int | None) -> bool:
        """Whether every server serves exactly the version `number`; with None, whether none serves the model."""
        wanted = [] if number is None else [number]
        return all(served.get(model, []) == wanted for served in self._servers)

    def version(self, model: str) -> int | None:
        """Return the one version of `model` that every server serves; None where there is no such version."""
        found = [served.get(model, []) for served in self._servers]
        return found[0][0] if len(found[0]) == 1 and all(versions == found[0] for versions in found) else None

    def numbers(self, model: str) -> set[int]:
        """Return the versions of `model` that any server serves, under its name or beside it."""
        names = [model, *(model + end for end in BESIDE)]
        return {number for served in self._servers for name in names for number in served.get(name, [])}

    def models(self) -> set[str]:
        """Return the models that any server serves."""
        return {model for served in self._servers for model in served}


class Fleet:
    """The Triton servers on one repository, at least one: a model is in production when all of them serve it."""

    def __init__(self, servers: list[Triton]) -> None:
        self.servers = servers

    def has_lost(self, model: str, number: int) -> bool:
        """Whether a server that answers does not serve the version `number` of `model`."""
        return any(server.has_lost(model, number) for server in self.servers)

    def serve(self, model: str, number: int) -> None:
        """Load and check a model on one server after another; stop at the first that fails."""
        for server in self.servers:
            server.serve(model, number)

    def unload(self, model: str) -> None:
        """Take a model out of every server."""
        for server in self.servers:
            server.unload(model)

    def served(self) -> Served:
        """Return what every server serves."""
        return Served([server.served() for server in self.servers])

    def index(self) -> list[dict[str, str]]:
        """Return Triton's repository index; with several servers each entry names its server."""
        if len(self.servers) == 1:
            return self.servers[0].index()
        return [{"server": server.address, **entry} for server in self.servers for entry in server.index()]

    def away(self) -> list[str]:
        """Return the addresses of the servers that do not answer or are not ready."""
        return [server.address for server in self.servers if not server.is_ready()]
