"""Which launcher a worker runs jobs with. A new one is a file beside this one, and a line in `LAUNCHERS`."""

from __future__ import annotations

import os
import pkgutil

from nightshift.errors import JobConfigurationError
from nightshift.launchers.base import Launcher

LAUNCHERS = {
    "process": "nightshift.launchers.process:process_launcher",
    "docker": "nightshift.launchers.docker.launcher:docker_launcher",
    "kubernetes": "nightshift.launchers.kubernetes:kubernetes_launcher",
}
"""name -> a function without arguments, named and not imported: a launcher's libraries load only where it is used"""
DEFAULT = "process"
SETTING = "NIGHTSHIFT_LAUNCHER"


def launcher() -> Launcher:
    """Return what runs jobs here, by `NIGHTSHIFT_LAUNCHER`.

    Raises:
        JobConfigurationError: there is no such launcher, or its settings are wrong.
    """
    name = os.environ.get(SETTING) or DEFAULT
    if name not in LAUNCHERS:
        raise JobConfigurationError(f"{SETTING} is {name!r}; there is: {', '.join(LAUNCHERS)}")
    found: Launcher = pkgutil.resolve_name(LAUNCHERS[name])()
    return found
