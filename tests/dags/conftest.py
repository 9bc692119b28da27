"""The DAGs as Airflow reads them, without a database or a server."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.dags.wiring import JobSchemas

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
def content() -> dict[str, Any]:
    """The content of a classifier's pipeline file."""
    return {
        "description": "Footwear", "owner": "ml-team", "data": {"group": "footwear"},
        "train": {"config": "configs/classifier/digits.yaml"}, "publish": {"model_name": "footwear"},
    }  # fmt: skip


@pytest.fixture(scope="session")
def with_plan(retrain: Any, content: dict[str, Any]) -> Any:
    """The DAG of a pipeline that serves a TensorRT plan, and publishes the graph beside it."""
    from nightshift.kinds.classification import ClassificationPipeline

    changes = {
        "verify": {"samples": 4000}, "publish": {"model_name": "footwear", "max_batch_size": 4},
        "convert": {
            "targets": ["tensorrt", "onnx"], "gpu": "A10", "precision": "mixed", "limit_ms": 50, "goal_ms": 20,
        },
    }  # fmt: skip
    return retrain.retrain_dag("with_plan", ClassificationPipeline.model_validate(content | changes))


@pytest.fixture(scope="session")
def of_kinds(retrain: Any, content: dict[str, Any]) -> dict[str, Any]:
    """The DAG of a pipeline of each kind, by kind."""
    from nightshift.kinds import KINDS

    annotated = {key: value for key, value in content.items() if key != "train"}
    annotated["data"] = {"group": "footwear", "annotations": "incoming/footwear.json"}
    contents = {"classification": content}
    return {
        kind: retrain.retrain_dag(f"kind_{kind}", model.model_validate({"kind": kind, **contents.get(kind, annotated)}))
        for kind, model in KINDS.items()
    }


@pytest.fixture(scope="session")
def all_dags(dags: dict[str, Any], with_plan: Any, of_kinds: dict[str, Any]) -> dict[str, Any]:
    """The project's DAGs, and those of pipelines that no file of the project asks for: with a plan, of each kind."""
    return {**dags, with_plan.dag_id: with_plan}  # TMPHACK


@pytest.fixture(scope="session")
def jobs(all_dags: dict[str, Any]) -> JobSchemas:
    """Arguments (JSON schema) and fields of the result of each job that a DAG runs, as its own module has them."""
    modules = sorted(
        {
            task.module
            for dag in all_dags.values()
            for task in dag.tasks
            if (ROOT / (task.module.replace(".", "/") + ".py")).exists()
        }
    )  # TMPHACK
    program = (
        "import importlib, json, sys\n"
        "modules = {name: importlib.import_module(name) for name in sys.argv[1:]}\n"
        "print(json.dumps({name: {'arguments': module.Arguments.model_json_schema(),"
        " 'result': list(module.Result.model_fields)} for name, module in modules.items()}))"
    )
    python = ROOT / ".venv" / "jobs" / "bin" / "python"
    done = subprocess.run([str(python), "-c", program, *modules], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: JobSchemas = json.loads(done.stdout)
    return found
