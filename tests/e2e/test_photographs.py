"""A pipeline that a user adds to a running stack: real photographs, from files on disk to a served classifier."""

import os
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from local.components import python
from local.run import ask_served_model, retrain
from local.settings import ROOT, Settings
from tests.e2e.support import versions
from tests.support.sample_data import HYMENOPTERA, MISSING

PIPELINE = """\
description: Ants and bees, photographs
owner: ml-team
data: {group: insects, golden_part: 0.3}
train: {config: configs/classifier/few_photographs.yaml, epochs: 30, batch: 16}
gate: {metric: accuracy, floor: 0.6}
publish: {model_name: insects, max_latency_ms: 1000}
"""


@pytest.mark.slow
@pytest.mark.skipif(not HYMENOPTERA.is_dir(), reason=MISSING)
def test_photographs_of_ants_and_bees_become_a_served_classifier(settings: Settings, console: Console) -> None:
    collect = str(settings.folder("collect"))
    table = str(HYMENOPTERA / "labels.csv")
    importer = [python("services"), "-m", "services.collect.importers", table, "--group", "insects"]
    subprocess.run([*importer, "--directory", collect], cwd=ROOT, check=True)
    Path(os.environ["NIGHTSHIFT_PIPELINES"], "insects.yaml").write_text(PIPELINE)

    night = retrain(settings, "retrain_insects", {}, console)

    assert night.state == "success", night.failed
    assert night.results["evaluate"]["candidate"]["metrics"]["accuracy"] >= 0.6
    assert versions(settings, "insects") == ["0.0.1"]
    answer = ask_served_model(settings, "insects", "insects", night.results["pull_dataset"]["snapshot_id"])
    assert answer["version"] == "0.0.1"
    assert answer["label"] in ("ants", "bees")
