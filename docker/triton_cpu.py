"""The CPU Triton of local/triton.py in a container: on the usual ports, for the other containers to reach."""

import os
from pathlib import Path

from local.settings import HOST
from local.triton import TritonServer

STATE = Path("/var/lib/triton")


def main() -> None:
    """Replace this process by the server, so that it gets the signals."""
    server = TritonServer(Path("/models"), STATE, 8000, 8001, 8002, log=STATE / "triton.log")
    server.remove_shared_memory()
    command = [part.replace(f"-address={HOST}", "-address=0.0.0.0") for part in server.command()]
    os.execve(command[0], command, {**os.environ, **server.environment()})


if __name__ == "__main__":
    main()
