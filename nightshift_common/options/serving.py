"""Options of how Triton runs a model, which the section `serve` of a pipeline file has too."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nightshift_common.options.base import Options

TimeoutAction = Literal["reject", "delay"]
BatchSize = Annotated[int, Field(ge=1, le=1024)]
TUNED = ("instances", "intra_op_threads", "preferred_batch_sizes", "queue_delay_us")
"""What `tune_model` looks for; the other options are for people to decide."""


class ServingOptions(Options):
    """How Triton runs a model: how many at once, on how many threads, and what waits for how long."""

    instances: Annotated[int, Field(ge=1, le=64)] | None = None
    """how many of it run at once on each device; none: 1"""
    intra_op_threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """threads of one ONNX Runtime session; none: what Triton's backend takes, the native one a thread a core"""
    preferred_batch_sizes: list[BatchSize] = Field([])
    """batch sizes that do not wait for more requests; none: only the largest"""
    queue_delay_us: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """microseconds that a request waits for others to be computed with; none: 500"""
    max_queue_size: int = Field(0, ge=0)
    """requests that may wait; one more is refused at once (gRPC UNAVAILABLE, HTTP 503); 0: no limit"""
    queue_timeout_ms: float = Field(0, ge=0, le=3_600_000)
    """a request that has waited longer is late; 0: never"""
    timeout_action: TimeoutAction = "reject"
    """what becomes of late requests: reject answers with an error, delay lets all others go first"""
    response_cache: bool = False
    """the same inputs get the answer of the first time from memory; takes a Triton that was started with a cache"""
    tuning: str | None = None
    """what `tune_model` found: its record in the bottle, for a graph of the same structure"""

    @model_validator(mode="after")
    def _says_things_once(self) -> ServingOptions:
        said = [name for name in TUNED if getattr(self, name) not in (None, [])]
        if self.tuning is not None and said:
            raise ValueError(f"tuning says what {', '.join(said)} should be: leave out one or the other")
        if self.timeout_action == "delay" and not self.queue_timeout_ms:
            raise ValueError("timeout_action delay needs a queue_timeout_ms")
        return self
