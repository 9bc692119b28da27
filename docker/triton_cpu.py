"""The CPU Triton of local/triton.py in a container: on the usual ports, for the other containers to reach."""

import os
import sys
from pathlib import Path

from local.settings import HOST
from local.triton import TritonServer, cache_mib

STATE = Path("/var/lib/triton")
KEY_FILE = Path("/run/triton/key")  # in a volume that it shares with the model storage alone


def main() -> None:
    """Replace this process by the server, so that it gets the signals."""
    server = TritonServer(
        Path("/models"), STATE, 8000, 8001, 8002, log=STATE / "triton.log", key_file=KEY_FILE, cache_mib=cache_mib()
    )
    server.remove_shared_memory()
    command = [part.replace(f"-address={HOST}", "-address=0.0.0.0") for part in server.command()]
    # What the image adds comes last, and wins: one with its models in it loads them all.
    os.execve(command[0], [*command, *sys.argv[1:], *server.new_key()], {**os.environ, **server.environment()})


if __name__ == "__main__":
    main()
