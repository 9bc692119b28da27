"""What the scripts of the families share: the project on the path, and defaults for options that are not given."""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(module: str, **defaults: object) -> None:
    """Run `conversion_jobs.<module>` with this process's options, and with `defaults` for those that are missing.

    Relative paths among the defaults are those of the project, wherever the script was started.
    """
    given = {token.partition("=")[0][2:].replace("-", "_") for token in sys.argv[1:] if token.startswith("--")}
    for name, value in defaults.items():
        if name not in given and "help" not in given:
            sys.argv.append(f"--{name}={ROOT / value if isinstance(value, Path) else value}")
    sys.path.insert(0, str(ROOT))
    runpy.run_module(f"conversion_jobs.{module}", run_name="__main__", alter_sys=True)
