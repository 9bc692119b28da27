"""Proof before a promotion: the version that comes answers as was verified, and is asked as the one that goes."""

from __future__ import annotations

import logging
import statistics
import time
from typing import Any

import numpy as np
from google.protobuf import text_format  # type: ignore[import-untyped]
from pydantic import BaseModel
from tritonclient.grpc.model_config_pb2 import ModelConfig

from nightshift_common.verified_examples import MAX_BYTES, VERIFIED_FILE, Arrays, VerifiedExamples, differences
from nightshift_common.verified_examples import read_examples as parse_examples
from services.model_storage.errors import NotProved, ServingFailed
from services.model_storage.production.candidates import Beside
from services.model_storage.repository.catalog import Catalog
from services.model_storage.repository.model_config import tensors
from services.model_storage.repository.record import PROOF, Record
from services.model_storage.triton import Fleet, Triton

logger = logging.getLogger(__name__)

MAX_LATENCY_MS = 2000.0  # of a verified input, where nobody says otherwise


class Proof(BaseModel):
    """What a version has shown before it was promoted."""

    examples: int = 0
    """verified inputs that it was asked; 0: the package has none, and nothing was proved"""
    latency_ms: float | None = None
    """median of requests of one example, after a warm-up"""
    problems: list[str] = []
    """why it would not have been promoted, had it not been forced"""
    notes: list[str] = []
    """what else is worth knowing: what could not be looked at, outputs of another size"""


class Prover:
    """Lets versions show what they can before they are promoted. The caller holds the lock of the model."""

    def __init__(self, catalog: Catalog, fleet: Fleet, beside: Beside, max_latency_ms: float) -> None:
        self._catalog, self._fleet, self._beside = catalog, fleet, beside
        self._max_latency_ms = max_latency_ms

    def prove(self, champion: Record | None, record: Record, force: bool, max_latency_ms: float | None = None) -> Proof:
        """Compare interfaces with the version in production and ask the verified inputs; serve nothing but for that.

        Raises:
            NotProved: it cannot take that place, and it is not forced.
            ServingFailed: Triton does not load it.
        """
        proof = Proof()
        try:
            examples = read_examples(self._catalog, record)
            if examples is None:
                proof.notes.append(f"nothing was proved: the package has no {VERIFIED_FILE}")
            self._compare(proof, champion, record, examples, max_latency_ms)
        except NotProved as error:
            proof.problems += error.problems
        what = f"{record.model} {record.version}"
        for sentence in proof.notes:
            logger.info("%s: %s", what, sentence)
        if proof.problems and not force:
            raise NotProved(proof.problems)
        if proof.problems:
            logger.warning("%s is promoted by force, although: %s", what, "; ".join(proof.problems))
        return proof

    def _compare(
        self, proof: Proof, champion: Record | None, record: Record, examples: VerifiedExamples | None,
        max_latency_ms: float | None,
    ) -> None:  # fmt: skip
        """Compare interfaces and ask the verified inputs; serve the version beside the champion where it takes that."""
        name = record.model + PROOF
        told = self._told_interface(record)
        present = None if champion is None else self._told_interface(champion)
        if champion is not None and present is not None and told is not None:
            self._note(proof, present, told)
        if proof.problems or (examples is None and (champion is None or (present is not None and told is not None))):
            return
        self._beside.serve(record, name, with_pictures=False)
        try:
            server = self._fleet.servers[0]
            if champion is not None and (present is None or told is None):
                try:
                    self._note(proof, present or server.config(record.model), told or server.config(name))
                except ServingFailed as error:
                    proof.notes.append(f"the interfaces could not be compared: {error}")
            if examples is not None and not proof.problems:
                limit = max_latency_ms or self._max_latency_ms
                for each in self._fleet.servers:
                    latency, problems = ask(each, name, record.triton_version, examples, record.target, limit)
                    proof.latency_ms = max(proof.latency_ms or 0.0, round(latency, 3))
                    proof.problems += problems
                proof.examples = examples.count
        finally:
            self._beside.remove(name)

    @staticmethod
    def _note(proof: Proof, present: Any, coming: Any) -> None:
        problems, notes = compare_interfaces(present, coming)
        proof.problems += [f"another interface than the version in production has: {problem}" for problem in problems]
        proof.notes += notes

    def _told_interface(self, record: Record) -> Any | None:
        """Return the configuration of a version where it tells inputs and outputs; Triton completes others."""
        config = text_format.Parse(self._catalog.config(record, record.model).decode(), ModelConfig())
        return config if config.input and config.output else None


def read_examples(catalog: Catalog, record: Record) -> VerifiedExamples | None:
    """Return the verified examples of a package; None where it has none.

    Raises:
        NotProved: they cannot be read.
    """
    file = record.files.get(VERIFIED_FILE)
    if file is None:
        return None
    if file.size > MAX_BYTES:
        raise NotProved([f"{VERIFIED_FILE} is {file.size} bytes long, at most {MAX_BYTES} are read"])
    try:
        return parse_examples(catalog.store.read(f"{record.folder}/{VERIFIED_FILE}") or b"")
    except ValueError as error:
        raise NotProved([f"{VERIFIED_FILE} cannot be read: {error}"]) from error


def compare_interfaces(present: Any, coming: Any) -> tuple[list[str], list[str]]:
    """Compare the configurations of two versions: return what clients would run into, and what is worth knowing.

    Inputs have to have the same names and types, and take the shapes that they took. Outputs may not go away or change
    their type or their number of dimensions; a size may, as classes come and go.
    """
    problems, notes = [], []
    for what, here, there in (
        ("input", tensors(present, "input"), tensors(coming, "input")),
        ("output", tensors(present, "output"), tensors(coming, "output")),
    ):
        if gone := sorted(here.keys() - there.keys()):
            problems.append(f"the {what} {', '.join(map(repr, gone))} is gone; there are: {', '.join(sorted(there))}")
        if what == "input" and (new := sorted(there.keys() - here.keys())):
            problems.append(f"the input {', '.join(map(repr, new))} is new")
        for name in sorted(here.keys() & there.keys()):
            (old_type, old_dims), (new_type, new_dims) = here[name], there[name]
            sizes = zip(old_dims, new_dims, strict=False)
            if old_type != new_type or len(old_dims) != len(new_dims):
                problems.append(f"the {what} {name!r} is {new_type} {new_dims}, it was {old_type} {old_dims}")
            elif what == "input" and any(new not in (-1, old) for old, new in sizes):
                problems.append(f"the input {name!r} takes {new_dims}, it took {old_dims}")
            elif old_dims != new_dims:
                notes.append(f"the {what} {name!r} is {new_dims}, it was {old_dims}")
    return problems, notes


def ask(
    triton: Triton, name: str, number: int, examples: VerifiedExamples, target: str, limit_ms: float
) -> tuple[float, list[str]]:
    """Send the verified inputs to what Triton serves as `name`, one by one; return the latency in ms and the problems.

    It stops at the first request that fails. The latency is the median of all but the first request.
    """
    config = triton.config(name)
    answers: list[Arrays] = []
    times: list[float] = []
    try:
        for index in [0, *range(examples.count)]:
            inputs = {key: array[index : index + 1] for key, array in examples.inputs.items()}
            started = time.perf_counter()
            found, version = triton.infer(name, _filled(inputs, config))
            times.append((time.perf_counter() - started) * 1000)
            answers.append({key: array[:1] for key, array in found.items()})
            if version != str(number):
                return times[-1], [f"version {version} answered in the place of {number}"]
    except ServingFailed as error:
        return 0.0, [f"a verified input is not answered: {error}"]
    joined = {key: np.concatenate([answer[key] for answer in answers[1:]]) for key in answers[0]}
    latency = statistics.median(times[1:])
    problems = differences(examples, joined, target)
    if latency > limit_ms:
        problems.append(f"a request takes {latency:.0f} ms (median), {limit_ms:g} ms are allowed")
    return latency, problems


def _filled(inputs: Arrays, config: Any) -> Arrays:
    """Return inputs of one example for a model that takes a fixed number of them: repeated as often."""
    if config.max_batch_size:
        return inputs
    sizes = {entry.name: entry.dims[0] for entry in config.input if entry.dims}
    return {name: np.repeat(array, max(1, sizes.get(name, 1)), axis=0) for name, array in inputs.items()}
