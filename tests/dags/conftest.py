"""The DAGs as Airflow reads them, without a database or a server."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "plugins"))  # as Airflow does
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-home-")  # importing Airflow writes its configuration


@pytest.fixture(scope="session")
def dags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every DAG of the project by its name: those of `dags/`, and one for each pipeline file."""
    from airflow.dag_processing.dagbag import DagBag
    from nightshift.pipeline_bundle import PipelineBundle

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTSHIFT_STATE", str(tmp_path_factory.mktemp("state")))
        patch.setenv("NIGHTSHIFT_HOME", str(ROOT))
        bundle = PipelineBundle(name="pipelines")
        bundle.initialize()
        found: dict[str, Any] = {}
        for folder in (ROOT / "dags", bundle.path):
            bag = DagBag(dag_folder=folder, bundle_path=folder)
            assert not bag.import_errors
            found |= bag.dags
    return found
