"""Looking for the settings under which a model answers most requests a second within a limit of latency.

As NVIDIA's Model Analyzer does it in its quick search: a coarse look at what matters most, then steps to neighbors
of the best as long as one is better. What comes out of it is measured again, in turns with the default, since the
best of many noisy numbers is the luckiest of them.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from nightshift_common.options.serving import ServingOptions

FINALISTS, ROUNDS = 3, 2
BETTER = 1.05  # a gain below this is within what two measurements of the same settings differ by


class Settings(BaseModel):
    """What is looked for; the names are those of `ServingOptions`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    instances: int = 1
    intra_op_threads: int | None = None
    preferred_batch_size: int | None = Field(None, description="none: the largest")
    queue_delay_us: int | None = Field(None, description="none: the graph's batch is fixed")

    @property
    def serving(self) -> dict[str, Any]:
        """Return these settings as values of `ServingOptions`."""
        size = self.preferred_batch_size
        return {
            "instances": self.instances, "intra_op_threads": self.intra_op_threads,
            "preferred_batch_sizes": [] if size is None else [size], "queue_delay_us": self.queue_delay_us,
        }  # fmt: skip


class Measurement(BaseModel):
    """Some seconds under load. Latencies in ms, of a request as its client sees it."""

    model_config = ConfigDict(extra="forbid")

    throughput: float = Field(description="requests of one picture answered a second")
    p50: float
    p90: float
    p99: float
    requests: int
    compared: int = Field(description="answers that were compared with the verified ones")
    client_cpu: float = Field(description="share of one core that the clients took; near 1 they are what is measured")
    machine_load: float = Field(description="load average of the clients' machine over a minute")


class Point(BaseModel):
    """Settings, and what was measured of them."""

    model_config = ConfigDict(extra="forbid")

    settings: Settings
    measured: list[Measurement] = []
    confirmed: list[Measurement] = []
    problem: str | None = Field(None, description="why it cannot be served so")

    def score(self, limit_ms: float, *, confirmed: bool = False) -> tuple[bool, float]:
        """Return what is larger for a better point: whether it is within the limit, and its requests a second.

        Of several measurements the lowest counts while the search goes on, and their median in the end.
        """
        found = self.confirmed if confirmed else self.measured
        if self.problem is not None or not found:
            return False, float("-inf")
        worst = max(one.p99 for one in found)
        if worst > limit_ms:
            return False, -worst
        throughputs = [one.throughput for one in found]
        return True, statistics.median(throughputs) if confirmed else min(throughputs)


class Tuning(BaseModel):
    """`tuning.json`: the settings that were chosen, every one that was tried, and what they were measured on."""

    model_config = ConfigDict(extra="forbid")

    target: str
    structure_sha256: str = Field(description="of the graph without its numbers: what the settings are for")
    onnx_sha256: str
    compute_capability: str | None = Field(None, description="of the plan")
    precision: str | None = Field(None, description="of the plan")
    max_batch_size: int
    clients: int
    limit_ms: float
    chosen: Settings
    throughput: float
    default_throughput: float
    p99: float
    default_p99: float
    points: list[Point]
    budget_used_up: bool = Field(description="the search ended by its time, not since nothing better was near")
    machine: dict[str, Any]
    versions: dict[str, str]

    @property
    def gain(self) -> float:
        """Throughput in multiples of the default's, measured in turns."""
        return self.throughput / self.default_throughput


@dataclass(frozen=True)
class Axes:
    """The values that each setting may take, in the order in which they are neighbors."""

    instances: Sequence[int] = (1,)
    intra_op_threads: Sequence[int | None] = (None,)
    preferred_batch_size: Sequence[int | None] = (None,)
    queue_delay_us: Sequence[int | None] = (None,)
    cores: int = 1
    """what instances and threads share"""

    def coarse(self, start: Settings) -> Iterator[Settings]:
        """Yield every number of instances with every number of threads, the others as in `start`, which comes first."""
        yield start
        for instances, threads in itertools.product(self.instances, self.intra_op_threads):
            settings = start.model_copy(update={"instances": instances, "intra_op_threads": threads})
            if settings != start and self.fits(settings):
                yield settings

    def neighbors(self, settings: Settings) -> Iterator[Settings]:
        """Yield the settings that differ from these by one step of one axis."""
        for name in Settings.model_fields:
            values = list(getattr(self, name))
            at = values.index(getattr(settings, name))
            for step in (at + 1, at - 1):
                if 0 <= step < len(values):
                    near = settings.model_copy(update={name: values[step]})
                    if self.fits(near):
                        yield near

    def fits(self, settings: Settings) -> bool:
        """Whether the threads are not more than twice the cores: beyond that they only wait for each other."""
        return settings.instances * (settings.intra_op_threads or 1) <= 2 * self.cores


@dataclass
class Search:
    """One search: `measure` fills a point's next measurement, `is_over` says whether its time is used up."""

    axes: Axes
    limit_ms: float
    measure: Callable[[Settings], Measurement | str]
    is_over: Callable[[], bool]
    points: dict[Settings, Point] = field(default_factory=dict)
    budget_used_up: bool = False

    def run(self, start: Settings) -> list[Point]:
        """Return the points that were tried, the start first."""
        self._look_at(self.axes.coarse(start))
        at = None
        while at != (best := self._best()) and not self.budget_used_up:
            self._look_at(self.axes.neighbors(best))
            at = best
        return list(self.points.values())

    def _look_at(self, settings: Iterable[Settings]) -> None:
        """Measure what is new of these, until the time is over; the first point of all is measured in any case."""
        for one in settings:
            if one in self.points:
                continue
            if self.points and self.is_over():
                self.budget_used_up = True
                return
            point = self.points[one] = Point(settings=one)
            self._measure(point, point.measured)

    def _best(self) -> Settings:
        """Return the settings that are best also when they are measured once more: luck does not lead the way."""
        while True:
            best = max(self.points.values(), key=lambda point: point.score(self.limit_ms))
            if len(best.measured) != 1 or best.problem is not None or self.is_over():
                return best.settings
            self._measure(best, best.measured)

    def _measure(self, point: Point, into: list[Measurement]) -> None:
        found = self.measure(point.settings)
        if isinstance(found, str):
            point.problem = found
        else:
            into.append(found)

    def choose(self, start: Settings) -> Point:
        """Measure the best points and the start again, in turns; return the best that is clearly better, or the start.

        A point that is within the limit only sometimes is not.
        """
        ranked = sorted(self.points.values(), key=lambda point: point.score(self.limit_ms), reverse=True)
        default = self.points[start]
        finalists = [default, *(p for p in ranked[:FINALISTS] if p is not default and p.score(self.limit_ms)[0])]
        for _ in range(ROUNDS):
            for point in finalists:
                if point.problem is None:
                    self._measure(point, point.confirmed)
        best = max(finalists, key=lambda point: point.score(self.limit_ms, confirmed=True))
        within, before = default.score(self.limit_ms, confirmed=True)
        if within and best.score(self.limit_ms, confirmed=True)[1] < before * BETTER:
            return default
        return best


def tuned(options: ServingOptions, found: Tuning) -> ServingOptions:
    """Return serving options with what was found in the place of `tuning`."""
    return options.model_copy(update={**found.chosen.serving, "tuning": None})


def doubled(largest: int) -> tuple[int, ...]:
    """Return 1, 2, 4 and so on up to `largest`, which is always the last."""
    powers = [2**n for n in range(largest.bit_length()) if 2**n < largest]
    return (*powers, largest)
