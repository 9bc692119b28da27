"""The CPU Triton of `.venv/triton` with the command line of NVIDIA's `tritonserver`: for jobs that start one of their
own, as `conversion_jobs.tune_model --server "python3.11 -m local.tritonserver"` does.

It only sets up what the wheel's server needs beside the caller's arguments, and becomes that server.
"""

from __future__ import annotations

import os
import sys

from local.settings import LocalStackError, Settings
from local.triton import assemble_backends, binary, cache_directory, server_environment


def main(arguments: list[str]) -> None:
    """Become the server; its arguments are `arguments` and what this machine adds."""
    backends = assemble_backends(Settings().state / "tritonserver" / "backends")
    command = [
        str(binary()), f"--backend-directory={backends}",
        cache_directory(),
        f"--backend-config=python,shm-region-prefix-name=nightshift_own_{os.getpid()}", *arguments,
    ]  # fmt: skip
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONHOME"}
    os.execve(command[0], command, inherited | server_environment())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except LocalStackError as error:
        sys.exit(f"tritonserver: {error}")
