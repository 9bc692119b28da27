"""Measure under which settings Triton answers most requests a second within a limit of latency."""

from __future__ import annotations

import json
import logging
import os
import shlex
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from conversion_jobs.onnx.graph import GraphInterface, interface, read_graph, structure_sha256
from conversion_jobs.package_model import verified_plan
from conversion_jobs.tensorrt.gpu import probe_gpu
from conversion_jobs.tensorrt.plan import Plan
from conversion_jobs.triton.load import measure
from conversion_jobs.triton.model_config import QUEUE_DELAY_MICROSECONDS, Device, model_config
from conversion_jobs.triton.served_model import Reference
from conversion_jobs.triton.temporary_server import TritonControl, temporary_triton
from conversion_jobs.triton.tuning import Axes, Measurement, Search, Settings, Tuning, doubled
from conversion_jobs.verification.record import passed_verification, read_model
from jobkit import job
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment
from jobkit.files import sha256_of
from nightshift_common.options.conversion import MAX_BATCH_SIZE, MaxBatchSize, Target
from nightshift_common.options.serving import ServingOptions

logger = logging.getLogger("conversion_jobs.tune_model")
DELAYS = (0, 100, QUEUE_DELAY_MICROSECONDS, 2000)  # microseconds: longer ones are seen in the latency of one picture
GPU_INSTANCES = 4  # what Model Analyzer tries at most, too


class Arguments(job.Arguments):
    """Find how many instances, threads and batches serve a verified model best, measured in a real Triton.

    By default that is a Triton of the job's own, which `--server` starts and which ends with the job.
    """

    experiment: str = Field(description="the experiment's folder in the bottle: models/<group>/<experiment>")
    target: Target = Field("onnx", description="what is served: the graph, or a plan of it")
    record: str | None = Field(None, description="for tensorrt: the plan's record in the bottle, from build_plan")
    device: Device = Field("auto", description="where instances run; auto: on a GPU where Triton has one")
    max_batch_size: MaxBatchSize = Field(
        MAX_BATCH_SIZE, description="the largest batch that callers may send; it is what it is, tuned are smaller ones"
    )
    clients: int = Field(8, ge=1, le=1024, description="how many ask at once, each for one picture")
    limit_ms: float = Field(1000, gt=0, description="99th percentile of a request at most; settings beyond it are out")
    seconds: float = Field(3, ge=0.2, le=600, description="of one measurement; a third more is warm-up")
    budget: float = Field(600, gt=0, description="seconds that the search may take; confirming what it found is extra")
    cores: int | None = Field(None, ge=1, description="of Triton's machine; none: this machine's")
    max_instances: int | None = Field(None, ge=1, le=64, description="none: the cores; on a GPU 4")
    server: str = Field(
        "tritonserver", description='starts a Triton; on a development machine "python3.11 -m local.tritonserver"'
    )
    url: str | None = Field(None, description="gRPC address, host:port, of a Triton without models, not --server")
    key_file: str | None = Field(None, description="for --url: file with the key of its repository calls")
    beside_others: bool = Field(False, description="for --url: also where it serves models, which slows them down")

    @model_validator(mode="after")
    def _goes_together(self) -> Arguments:
        if (self.target == "tensorrt") != (self.record is not None):
            raise ValueError("--target tensorrt needs --record, and --target onnx has none")
        if self.url is None and (self.key_file is not None or self.beside_others):
            raise ValueError("--key_file and --beside_others are for --url")
        return self


class Result(job.Result):
    """What was found; `package_model --tuning` takes it."""

    tuning: str = Field(description="key in the bottle")
    chosen: Settings
    throughput: float = Field(description="requests of one picture answered a second")
    gain: float = Field(description="throughput in multiples of the default's, measured in turns")
    p99_ms: float


@dataclass(frozen=True)
class Bench:
    """What is measured, and where."""

    arguments: Arguments
    control: TritonControl
    name: str
    file: Path
    graph: GraphInterface
    reference: Reference

    def measure(self, settings: Settings) -> Measurement | str:
        """Load the model with these settings, put it under load, take it out again."""
        started = time.monotonic()
        arguments = self.arguments
        try:
            self.control.load(self.name, self.config(settings), f"model.{self.file.suffix[1:]}", self.file.read_bytes())
            found = measure(
                self.control.address, self.name, self.graph, self.reference, arguments.target, arguments.clients,
                arguments.seconds,
            )  # fmt: skip
        except DataValidationError as error:  # these settings do not load; others may
            found = str(error)
        finally:
            self.control.unload(self.name)
        told = found if isinstance(found, str) else f"{found.throughput:.1f} a second, p99 {found.p99:.1f} ms"
        logger.info("%s: %s (%.1f s)", settings, told, time.monotonic() - started)
        return found

    def config(self, settings: Settings) -> str:
        """Return the model's configuration as JSON; a cache would answer in its place, and labels are no file here."""
        from google.protobuf import json_format  # type: ignore[import-untyped]

        config = model_config(
            self.graph, self.name, target=self.arguments.target, max_batch_size=self.arguments.max_batch_size,
            device="gpu" if self.arguments.target == "tensorrt" else self.arguments.device, has_labels=False,
            serving=ServingOptions(**settings.serving),
        )  # fmt: skip
        return str(json_format.MessageToJson(config, preserving_proto_field_name=True))


def run(arguments: Arguments, context: job.Context) -> Result:
    """Check that the model is the verified one, search, confirm, write what was found."""
    experiment, bottle = Experiment(arguments.experiment), context.bottle
    onnx = bottle.local(experiment.onnx)
    digest = sha256_of(onnx)
    passed_verification(bottle, experiment.onnx, experiment.verification, digest, "verify_onnx")
    model = read_graph(onnx)
    graph = interface(model)
    plan, file, key = None, onnx, f"{experiment.folder}/onnx/tuning.json"
    if arguments.record is not None:
        file = verified_plan(bottle, arguments.record, digest, arguments.max_batch_size).file
        plan = read_model(bottle, arguments.record, Plan, "run build_plan")
        key = f"{arguments.record.rpartition('/')[0]}/tuning.json"
    axes, start = axes_of(arguments, graph)
    with server_of(arguments, context.directory / "triton.log") as control:
        name = f"tuning_{uuid.uuid4().hex[:12]}"
        bench = Bench(arguments, control, name, file, graph, Reference(bottle.local(experiment.reference)))
        search = Search(axes, arguments.limit_ms, bench.measure, over_after(arguments.budget))
        search.run(start)
        chosen, default = search.choose(start), search.points[start]
        version = control.version()
    if default.problem is not None:
        raise DataValidationError(f"the model cannot be served as it is packaged by default: {default.problem}")
    if not chosen.score(arguments.limit_ms, confirmed=True)[0]:
        fastest = min(one.p99 for point in search.points.values() for one in (*point.measured, *point.confirmed))
        raise DataValidationError(
            f"no settings answer {arguments.clients} clients within {arguments.limit_ms:g} ms (p99); the lowest p99 "
            f"was {fastest:.1f} ms: allow more, or make the model faster"
        )
    throughput, p99 = confirmed(chosen.confirmed)
    default_throughput, default_p99 = confirmed(default.confirmed)
    found = Tuning(
        target=arguments.target, structure_sha256=structure_sha256(model), onnx_sha256=digest,
        compute_capability=plan and plan.compute_capability, precision=plan and plan.precision,
        max_batch_size=arguments.max_batch_size, clients=arguments.clients, limit_ms=arguments.limit_ms,
        chosen=chosen.settings, throughput=throughput, p99=p99, default_throughput=default_throughput,
        default_p99=default_p99, points=list(search.points.values()), budget_used_up=search.budget_used_up,
        machine=machine(arguments), versions={"triton": version},
    )  # fmt: skip
    bottle.write(key, found.model_dump_json(indent=2) + "\n")
    report(found, context)
    return Result(tuning=key, chosen=found.chosen, throughput=throughput, gain=round(found.gain, 3), p99_ms=p99)


def confirmed(measured: list[Measurement]) -> tuple[float, float]:
    """Return the median throughput and the worst 99th percentile of measurements."""
    return round(statistics.median(one.throughput for one in measured), 2), max(one.p99 for one in measured)


def axes_of(arguments: Arguments, graph: GraphInterface) -> tuple[Axes, Settings]:
    """Return what may be tried, and what `package_model` takes where nobody says anything."""
    cores = arguments.cores or len(os.sched_getaffinity(0))
    on_gpu = arguments.target == "tensorrt" or arguments.device == "gpu"
    instances = doubled(arguments.max_instances or (GPU_INSTANCES if on_gpu else cores))
    threads = (None,) if on_gpu else (None, *doubled(cores))
    if not graph.has_free_batch:
        return Axes(instances, threads, cores=cores), Settings()
    sizes = doubled(min(arguments.max_batch_size, arguments.clients))
    preferred = (*(size for size in sizes if size < arguments.max_batch_size), None)
    start = Settings(queue_delay_us=QUEUE_DELAY_MICROSECONDS)
    return Axes(instances, threads, preferred, DELAYS, cores), start


@contextmanager
def server_of(arguments: Arguments, log: Path) -> Iterator[TritonControl]:
    """Return the Triton that is measured in.

    Raises:
        ConfigurationError: it serves models, and what they answer would be slowed down; or its key cannot be read.
    """
    if arguments.url is None:
        with temporary_triton(shlex.split(arguments.server), log) as control:
            yield control
        return
    try:
        key = None if arguments.key_file is None else Path(arguments.key_file).read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"--key_file cannot be read: {error}") from error
    control = TritonControl(arguments.url, key)
    if (others := control.ready_models()) and not arguments.beside_others:
        raise ConfigurationError(
            f"Triton at {arguments.url} serves {', '.join(others[:5])}: tuning would slow them down. Name a Triton "
            "without models, or add --beside_others"
        )
    yield control


def over_after(seconds: float) -> Callable[[], bool]:
    """Return what says whether that many seconds have passed since now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def machine(arguments: Arguments) -> dict[str, Any]:
    """Return what the numbers were measured on: of another machine's Triton only its address is known."""
    if arguments.url is not None:
        return {"triton": arguments.url, "clients_cores": len(os.sched_getaffinity(0))}
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    try:
        gpu = probe_gpu().name
    except ConfigurationError:
        gpu = None
    return {
        "cpu": names[0].partition(":")[2].strip() if names else None,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": gpu,
    }


def report(found: Tuning, context: job.Context) -> None:
    """Say what was found in the log, and in MLflow where the job is tracked."""
    logger.info(
        "chosen: %s; %.1f requests a second (%.2f times the default's %.1f), p99 %.1f ms (%.1f)",
        found.chosen, found.throughput, found.gain, found.default_throughput, found.p99, found.default_p99,
    )  # fmt: skip
    if (cpu := max(one.client_cpu for point in found.points for one in point.measured or [])) > 0.9:
        logger.warning("the clients took %.0f %% of a core: faster settings cannot be told apart", cpu * 100)
    if found.budget_used_up:
        logger.warning("the search ended by its budget; there may be better settings: raise --budget")
    if context.is_tracked:
        context.tracking.metrics(
            {
                "tuning.throughput": found.throughput, "tuning.default_throughput": found.default_throughput,
                "tuning.gain": found.gain, "tuning.p99_ms": found.p99,
            }
        )  # fmt: skip
        context.tracking.dictionary(json.loads(found.model_dump_json()), "tuning.json")


if __name__ == "__main__":
    job.main(Arguments, run)
