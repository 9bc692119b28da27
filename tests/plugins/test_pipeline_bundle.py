"""One DAG a pipeline file: a new one appears, one that is gone goes, a broken one stays alone with its error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nightshift.pipelines.bundle import PipelineBundle, pipeline_file
from tests.support.airflow import Airflow
from tests.support.waiting import wait_for

GOOD = """\
description: A pipeline
owner: ml-team
data: {group: season}
train: {config: configs/classifier/season.yaml}
publish: {model_name: season}
"""


@pytest.fixture
def bundle(home: Path, tmp_path: Path) -> PipelineBundle:
    (home / "configs" / "pipelines" / "season.yaml").write_text(GOOD)
    bundle = PipelineBundle(name="pipelines")
    bundle.initialize()
    assert bundle.path == tmp_path / "state" / "pipelines"
    return bundle


def links(bundle: PipelineBundle) -> set[str]:
    return {path.name for path in bundle.path.iterdir()}


def test_each_pipeline_file_is_a_link_to_the_one_dag_file(bundle: PipelineBundle, home: Path) -> None:
    assert links(bundle) == {"retrain_season.py"}
    link = bundle.path / "retrain_season.py"
    assert link.readlink() == home / "dags" / "retrain.py"
    assert pipeline_file(str(link)) == home / "configs" / "pipelines" / "season.yaml"
    assert pipeline_file(str(home / "dags" / "retrain.py")) is None
    assert bundle.get_current_version() is None


def test_links_follow_the_files(bundle: PipelineBundle, home: Path) -> None:
    pipelines = home / "configs" / "pipelines"
    (pipelines / "footwear.yaml").write_text(GOOD)
    (pipelines / "wrong_end.yml").write_text(GOOD)
    (pipelines / "season.yaml").unlink()
    bundle.refresh()
    assert links(bundle) == {"retrain_footwear.py", "retrain_wrong_end.py"}


def test_a_link_that_leads_elsewhere_is_mended_and_one_that_is_right_is_left(
    bundle: PipelineBundle, home: Path
) -> None:
    link = bundle.path / "retrain_season.py"
    before = os.lstat(link).st_ino
    bundle.refresh()
    assert os.lstat(link).st_ino == before
    link.unlink()
    link.symlink_to("/nowhere.py")
    bundle.refresh()
    assert link.readlink() == home / "dags" / "retrain.py"


def test_a_broken_pipeline_shows_its_error_and_the_others_stay(airflow: Airflow) -> None:
    configs = airflow.home / "configs"
    (configs / "classifier").mkdir(exist_ok=True)
    (configs / "classifier" / "season.yaml").write_text(
        "experiment_name: season\nmodel: {backbone_name: resnet18.a1_in1k}\n"
    )
    season = configs / "pipelines" / "season.yaml"
    season.write_text(GOOD)
    wait_for(lambda: dag(airflow, "season"), "the first pipeline", 60)

    broken = configs / "pipelines" / "broken.yaml"
    broken.write_text(GOOD.replace("owner: ml-team", "ownr: ml-team").replace("{group: season}", "{group: 5}"))
    (error,) = wait_for(lambda: import_errors(airflow), "the import error", 60)
    assert error["filename"].endswith("retrain_broken.py")
    for line in ("broken.yaml:1: owner: the key is missing", "broken.yaml:2: ownr: there is no such key",
                 "broken.yaml:3: data.group: input should be a valid string (it is 5)"):  # fmt: skip
        assert f"configs/pipelines/{line}" in error["stack_trace"]
    assert dag(airflow, "season")

    broken.write_text(GOOD.replace("model_name: season", "model_name: mended"))
    wait_for(lambda: dag(airflow, "broken") and not import_errors(airflow), "the mended pipeline", 60)

    broken.unlink()
    wait_for(lambda: not dag(airflow, "broken"), "the pipeline to go", 60)
    assert dag(airflow, "season")
    season.unlink()


def dag(airflow: Airflow, pipeline: str) -> dict[str, Any] | None:
    """Return the pipeline's DAG where Airflow would run it."""
    answer = airflow.client.get(f"/api/v2/dags/retrain_{pipeline}")
    found: dict[str, Any] = answer.json()
    return None if answer.status_code == 404 or found["is_stale"] or found["has_import_errors"] else found


def import_errors(airflow: Airflow) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = airflow.call("GET", "/importErrors")["import_errors"]
    return found
