"""Start the model storage: `python -m services.model_storage`; it is configured by `MODEL_STORAGE_*` variables."""

from __future__ import annotations

import logging
import sys

import uvicorn
from pydantic import ValidationError

from services.model_storage.api.app import create_app
from services.model_storage.errors import StorageError
from services.model_storage.service import Service
from services.model_storage.settings import Settings


def main() -> None:
    """Serve until told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    try:
        settings = Settings()
        app = create_app(Service(settings))
    except ValidationError as error:
        lines = [f"MODEL_STORAGE_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()]
        sys.exit("the settings are wrong:\n  " + "\n  ".join(lines))
    except StorageError as error:
        sys.exit(str(error))
    uvicorn.run(app, host=settings.host, port=settings.port, log_level="warning", timeout_graceful_shutdown=10)


if __name__ == "__main__":
    main()
