"""Which GPU this is, by `nvidia-smi`."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from jobkit.errors import ConfigurationError

_FIELDS = ("name", "compute_cap", "driver_version", "memory.total")


@dataclass(frozen=True)
class Gpu:
    """The first GPU that the container sees; `memory_mib` is what it has in all."""

    name: str
    compute_capability: str
    driver: str
    memory_mib: int

    @property
    def slug(self) -> str:
        """A name for folders: plans of one compute capability are for one kind of GPU."""
        return f"sm{self.compute_capability.replace('.', '')}"


def probe_gpu(nvidia_smi: str = "nvidia-smi") -> Gpu:
    """Return the GPU that a plan would be built on.

    Raises:
        ConfigurationError: there is none, or the container does not see it.
    """
    command = [nvidia_smi, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    hint = "run this task on the queue of its GPU, in a container with the NVIDIA runtime"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{nvidia_smi} is not there, so this is no GPU worker: {hint}") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigurationError(f"{nvidia_smi} does not answer: the driver hangs; restart the worker") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise ConfigurationError(f"{nvidia_smi} finds no GPU ({(done.stdout + done.stderr).strip()}): {hint}")
    values = [value.strip() for value in lines[0].split(",")]
    if len(values) != len(_FIELDS) or not values[3].isdecimal():
        raise ConfigurationError(f"{nvidia_smi} answered {lines[0]!r}, not {', '.join(_FIELDS)}")
    return Gpu(values[0], values[1], values[2], int(values[3]))
