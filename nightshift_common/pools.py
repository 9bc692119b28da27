"""Airflow's pools: `python -m nightshift_common.pools > pools.json`, then `airflow pools import pools.json`.

Their slots are GPUs: `NIGHTSHIFT_GPU_SLOTS` those that train, `NIGHTSHIFT_T4_SLOTS` and the like those that build
plans; one each where nothing is set.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from nightshift_common.gpus import GPUS

TRAINING_POOL = "gpu"


def pools(environment: Mapping[str, str] = os.environ) -> dict[str, dict[str, Any]]:
    """Return every pool by its name, in the form that Airflow imports.

    Raises:
        ValueError: a variable is no number.
    """
    described = {TRAINING_POOL: "one slot a GPU that trains"}
    described |= {gpu.pool: f"one slot a {gpu.name} that builds plans" for gpu in GPUS.values()}
    return {
        name: {
            "slots": int(environment.get(f"NIGHTSHIFT_{name.upper()}_SLOTS") or 1),
            "description": description,
            "include_deferred": False,
        }
        for name, description in described.items()
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(pools(), indent=1) + "\n")
