"""The GPUs that Nightshift builds plans for: compute capability, and the queue and pool of the workers that have one.

Compute capabilities: NVIDIA's table at developer.nvidia.com/cuda-gpus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

GpuName = Literal["T4", "A100", "A10", "L4", "L40S", "H100"]


@dataclass(frozen=True)
class GpuType:
    """A kind of GPU; its workers listen to `queue`, its slots are those of `pool` (docs/gpu-workers.md)."""

    name: GpuName
    compute_capability: str

    @property
    def queue(self) -> str:
        """The Celery queue of its workers."""
        return self.name.lower()

    @property
    def pool(self) -> str:
        """The Airflow pool whose slots are these GPUs."""
        return self.name.lower()


_CAPABILITY: dict[GpuName, str] = {
    "T4": "7.5",
    "A100": "8.0",
    "A10": "8.6",
    "L4": "8.9",
    "L40S": "8.9",
    "H100": "9.0",
}
GPUS: dict[GpuName, GpuType] = {name: GpuType(name, _CAPABILITY[name]) for name in get_args(GpuName)}
