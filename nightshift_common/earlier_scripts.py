"""What the scripts at the earlier tools' paths share: defaults for options that are not given."""

import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOTTLE = "NIGHTSHIFT_BOTTLE"


def run(module: str, **defaults: object) -> None:
    """Run a job with this process's options, and with `defaults` for those that are missing.

    Relative paths among the defaults are those of the project, wherever the script was started.
    """
    given = {token.partition("=")[0][2:].replace("-", "_") for token in sys.argv[1:] if token.startswith("--")}
    for name, value in defaults.items():
        if name not in given and "help" not in given:
            sys.argv.append(f"--{name}={ROOT / value if isinstance(value, Path) else value}")
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run_with_bottle(module: str, **defaults: object) -> None:
    """Run a job as `run` does, with the folder `classification_data` of the project where no bottle is named."""
    os.environ.setdefault(BOTTLE, str(ROOT / "classification_data"))
    run(module, **defaults)
