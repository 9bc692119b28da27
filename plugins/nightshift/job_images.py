"""Which image a job runs in."""

from __future__ import annotations

from collections.abc import Mapping

from nightshift.contract import JobSpec
from nightshift.errors import JobMisconfigured

USUAL = "jobs"  # the environment whose packages are in the images of the modules


def image_of(spec: JobSpec, images: Mapping[str, str], setting: str) -> str:
    """Return the image named for the job's module; else for its environment, say `detection`; else for its package.

    Raises:
        JobMisconfigured: there is none; the message says which there are, and the setting that names them.
    """
    parts = spec.module.split(".")
    packages = [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]
    names = [spec.module, *(packages if spec.environment == USUAL else [spec.environment])]
    for name in names:
        if image := images.get(name):
            return image
    wanted = spec.module if spec.environment == USUAL else f"{spec.module} of the environment {spec.environment}"
    raise JobMisconfigured(f"no image is named for {wanted}; {setting} has images for {', '.join(sorted(images))}")
