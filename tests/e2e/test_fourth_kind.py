"""A kind that nobody foresaw goes through the whole DAG to a served model: it adds files, and a line to the union."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local.airflow import connections
from local.settings import HOST, ROOT, Settings
from tests.e2e.support import versions
from tests.support.airflow import Airflow
from tests.support.airflow import airflow as run_airflow

KIND = Path(__file__).parent / "constant_kind"
UNION = re.compile(r"(AnyPipeline = Annotated\[\n    [\w |]+)")  # whatever kinds there are
PIPELINE = """\
kind: constant
description: The most frequent digit
owner: me
data: {group: digits}
gate: {floor: 0.05}
publish: {model_name: constant}
"""


def checkout_with_the_kind(folder: Path) -> Path:
    """Return a checkout that is this one but for the files of the kind, and its line in the union of kinds."""
    kinds = Path("plugins") / "nightshift" / "kinds"
    for level in (Path(), Path("plugins"), Path("plugins") / "nightshift", kinds):
        (folder / level).mkdir(parents=True)
        for entry in sorted((ROOT / level).iterdir()):
            if not kinds.is_relative_to(level / entry.name) and entry.name != "__pycache__":
                (folder / level / entry.name).symlink_to(entry)
    union = folder / kinds / "__init__.py"
    text = union.read_text()
    union.unlink()
    line = "from nightshift.kinds.constant import ConstantPipeline\n"
    text, changed = UNION.subn(r"\1 | ConstantPipeline", text)
    assert changed == 1
    union.write_text(text.replace("from nightshift.kinds.detection", f"{line}from nightshift.kinds.detection"))
    (folder / kinds / "constant.py").symlink_to(KIND / "constant.py")
    (folder / "constant_jobs").symlink_to(KIND / "constant_jobs")
    return folder


@pytest.fixture(scope="module")
def airflow(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    """A second Airflow, of a checkout with the fourth kind, on the services of the stack."""
    home = checkout_with_the_kind(tmp_path_factory.mktemp("fourth") / "checkout")
    pipelines = tmp_path_factory.mktemp("fourth_pipelines")
    (pipelines / "constant.yaml").write_text(PIPELINE)
    environment = {
        **connections(settings),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(home / "plugins"),
        "NIGHTSHIFT_PIPELINES": str(pipelines),
        "PYTHONPATH": str(home),
        "PATH": f"{ROOT / '.venv' / 'airflow' / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    with run_airflow(home, tmp_path_factory.mktemp("state"), settings.database_url("postgres"), **environment) as found:
        yield found


@pytest.mark.slow
def test_a_fourth_kind_goes_through_the_whole_dag_to_a_served_model(airflow: Airflow, settings: Settings) -> None:
    run = airflow.trigger("retrain_constant")
    state, tasks = airflow.finished("retrain_constant", run, 240)
    assert (state, {task for task, how in tasks.items() if how != "success"}) == ("success", set())
    assert {"pull_dataset", "count_labels", "train", "evaluate", "gate", "deploy_model", "report"} <= set(tasks)
    reasons = airflow.xcom("retrain_constant", run, "gate")["reasons"]
    assert "majority_share" in reasons[0] and "reaches the floor of 0.05" in reasons[0]
    assert airflow.xcom("retrain_constant", run, "report")["outcome"] == "promoted"
    assert versions(settings, "constant") == ["0.0.1"]
    pictures = [0.0] * 64 + [1.0] * 64
    asked = {"inputs": [{"name": "input", "shape": [2, 1, 8, 8], "datatype": "FP32", "data": pictures}]}
    address = f"http://{HOST}:{settings.port('triton')}/v2/models/constant/infer"
    answer = httpx.post(address, json=asked, timeout=30).json()["outputs"][0]["data"]
    assert answer[:10] == answer[10:], "whatever the picture"


@pytest.mark.slow
def test_a_second_night_has_nothing_new_and_another_parameter_of_the_kind_has(airflow: Airflow) -> None:
    run = airflow.trigger("retrain_constant")
    assert airflow.finished("retrain_constant", run, 120)[1]["train"] == "skipped"
    assert airflow.xcom("retrain_constant", run, "report")["outcome"] == "nothing_new"
    run = airflow.trigger("retrain_constant", smoothing=2, publish=False)
    state, tasks = airflow.finished("retrain_constant", run, 240)
    assert (state, tasks["train"], tasks["publish_model"]) == ("success", "success", "skipped")
