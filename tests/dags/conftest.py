"""The DAGs as Airflow reads them, without a database or a server."""

from __future__ import annotations

import importlib.util
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

    from nightshift.pipelines.bundle import PipelineBundle

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


@pytest.fixture(scope="session")
def retrain() -> Any:
    """The module `dags/retrain.py`, read under its own name."""
    spec = importlib.util.spec_from_file_location("retrain", ROOT / "dags" / "retrain.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def with_plan(retrain: Any) -> Any:
    """The DAG of a pipeline that serves a TensorRT plan, and publishes the graph beside it."""
    from nightshift.pipelines.pipeline_file import Pipeline

    content = {
        "description": "Footwear", "owner": "ml-team", "data": {"group": "footwear"},
        "train": {"config": "configs/classifier/digits.yaml"}, "verify": {"samples": 4000},
        "convert": {
            "targets": ["tensorrt", "onnx"], "gpu": "A10", "precision": "mixed", "limit_ms": 50, "goal_ms": 20,
            "queue": "a10", "pool": "a10",
        },
        "publish": {"model_name": "footwear", "max_batch_size": 4},
    }  # fmt: skip
    return retrain.retrain_dag("with_plan", Pipeline.model_validate(content))


@pytest.fixture(scope="session")
def all_dags(dags: dict[str, Any], with_plan: Any) -> dict[str, Any]:
    """The project's DAGs, and that of a pipeline with a plan, which no file of the project asks for."""
    return {**dags, with_plan.dag_id: with_plan}
