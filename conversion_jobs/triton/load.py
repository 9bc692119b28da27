"""Clients that ask a served model without pause, and what they see: answers, latencies, throughput."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field

import numpy as np

from conversion_jobs.onnx.graph import GraphInterface
from conversion_jobs.triton.served_model import Array, Reference, served_checks
from conversion_jobs.triton.tuning import Measurement
from conversion_jobs.verification.checks import judge_all

ENOUGH = 40  # answers in one measurement: below that a 99th percentile is one request's chance
PATIENCE = 8  # times the measurement's seconds, for a model that is that slow
KEPT_BYTES = 256 << 20  # of answers until they are compared
REQUEST_SECONDS = 60.0


@dataclass
class _Seen:
    started: float
    latencies: list[float] = field(default_factory=list)
    answers: list[tuple[int, Array]] = field(default_factory=list)
    kept: int = 0
    error: str | None = None

    def keep(self, picture: int, answer: Array) -> None:
        if self.kept + answer.nbytes <= KEPT_BYTES:
            self.answers.append((picture, answer))
            self.kept += answer.nbytes


def measure(
    address: str, model: str, graph: GraphInterface, reference: Reference, target: str, clients: int, seconds: float
) -> Measurement | str:
    """Let `clients` ask for one picture each, again as soon as they are answered; compare the answers afterwards.

    Returns what was seen after a warm-up; a sentence where the model failed or answered otherwise than was verified.
    """
    before = time.process_time()
    wall = time.monotonic()
    seen, elapsed = asyncio.run(_ask(address, model, graph, reference, clients, seconds))
    cpu = (time.process_time() - before) / (time.monotonic() - wall)
    if seen.error is not None:
        return seen.error
    numbers = [picture for picture, _ in seen.answers]
    answers = np.concatenate([answer for _, answer in seen.answers])
    names = [reference.pictures[number] for number in numbers]
    verdicts = judge_all(served_checks(target, reference.output), reference.outputs[numbers], answers, names)
    if failed := [verdict.sentence for verdict in verdicts if not verdict.passed]:
        return f"answers otherwise than was verified: {'; '.join(failed)}"
    p50, p90, p99 = (round(float(value) * 1000, 3) for value in np.percentile(seen.latencies, [50, 90, 99]))
    return Measurement(
        throughput=round(len(seen.latencies) / elapsed, 2), p50=p50, p90=p90, p99=p99, requests=len(seen.latencies),
        compared=len(numbers), client_cpu=round(cpu, 2), machine_load=round(os.getloadavg()[0], 1),
    )  # fmt: skip


async def _ask(
    address: str, model: str, graph: GraphInterface, reference: Reference, clients: int, seconds: float
) -> tuple[_Seen, float]:
    """Return what all clients saw, and for how long they were counted."""
    from tritonclient.grpc import InferInput, InferRequestedOutput
    from tritonclient.grpc.aio import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    given, wanted = graph.inputs[0].name, graph.outputs[0].name
    tensors = []
    for picture in reference.inputs:
        tensors.append(InferInput(given, [1, *picture.shape], "FP32"))
        tensors[-1].set_data_from_numpy(picture[None])
    outputs = [InferRequestedOutput(wanted)]
    warm_up = seconds / 3
    seen = _Seen(time.monotonic() + warm_up)
    latest = seen.started + PATIENCE * seconds

    async def client(number: int) -> None:
        while seen.error is None:
            asked = time.monotonic()
            if asked > latest or (asked > seen.started + seconds and len(seen.latencies) >= ENOUGH):
                return
            picture = number % len(tensors)
            number += 1
            try:
                answer = await server.infer(model, [tensors[picture]], outputs=outputs, client_timeout=REQUEST_SECONDS)
            except InferenceServerException as error:
                seen.error = f"a request failed: {error.message()}"
                return
            answered = time.monotonic()
            seen.keep(picture, answer.as_numpy(wanted))
            if asked >= seen.started:
                seen.latencies.append(answered - asked)

    async with InferenceServerClient(address) as server:
        await asyncio.gather(*(client(number) for number in range(clients)))
    if not seen.latencies and seen.error is None:
        seen.error = f"no request was answered in {PATIENCE * seconds:g} s"
    return seen, time.monotonic() - seen.started
