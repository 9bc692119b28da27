"""Proof before a promotion: the version that comes answers as was verified, and is asked as the one that goes."""

from __future__ import annotations

import logging
import statistics
import time
from typing import Any

import numpy as np
from pydantic import BaseModel

from nightshift_common.verified_examples import MAX_BYTES, VERIFIED_FILE, Arrays, VerifiedExamples, differences
from nightshift_common.verified_examples import read_examples as parse_examples
from services.model_storage.errors import NotProved, ServingFailed
from services.model_storage.repository.catalog import Catalog
from services.model_storage.repository.model_config import tensors
from services.model_storage.repository.record import Record
from services.model_storage.triton import Triton

logger = logging.getLogger(__name__)


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
