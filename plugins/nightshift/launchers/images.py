"""Which image a job runs in."""

from __future__ import annotations

from collections.abc import Mapping

from nightshift.errors import JobConfigurationError
from nightshift.launchers.base import JobSpec

USUAL = "jobs"  # the runtime whose packages are in the images of the modules


def image_of(spec: JobSpec, images: Mapping[str, str], setting: str) -> str:
    """Return the image named for the job's module; else for its runtime, say `detection`; else for its package.

    Raises:
        JobConfigurationError: there is none; the message says which there are, and the setting that names them.
    """
    parts = spec.module.split(".")
    packages = [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]
    names = [spec.module, *(packages if spec.runtime == USUAL else [spec.runtime])]
    for name in names:
        if image := images.get(name):
            return image
    wanted = spec.module if spec.runtime == USUAL else f"{spec.module} of the runtime {spec.runtime}"
    raise JobConfigurationError(f"no image is named for {wanted}; {setting} has images for {', '.join(sorted(images))}")
