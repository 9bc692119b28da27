"""Start the collect server: `python -m services.collect --directory FOLDER [--host 127.0.0.1] [--port 8310]`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import uvicorn

from services.collect.app import Credentials, create_app
from services.collect.store import Store

LOGIN, PASSWORD = "NIGHTSHIFT_COLLECT_LOGIN", "NIGHTSHIFT_COLLECT_PASSWORD"


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(
        prog="python -m services.collect",
        description=f"The collection API and its picture files. {LOGIN} and {PASSWORD} are its login.",
    )
    parser.add_argument("--directory", type=Path, required=True, help="where the pictures and their index are")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8310)
    options = parser.parse_args()
    missing = [name for name in (LOGIN, PASSWORD) if not os.environ.get(name)]
    if missing:
        sys.exit(f"set {' and '.join(missing)}: what clients log in with")
    app = create_app(Store(options.directory), Credentials(os.environ[LOGIN], os.environ[PASSWORD]))
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
