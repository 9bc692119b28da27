"""`make new-pipeline`: the files that it writes, and what it refuses to write."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from local import new_pipeline
from local.settings import LocalStackError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("NIGHTSHIFT_PIPELINES", raising=False)
    monkeypatch.setattr(new_pipeline, "ROOT", tmp_path)
    return tmp_path


def test_both_files_are_written_with_what_was_said(root: Path) -> None:
    answers = {"name": "shoes", "group": "footwear", "description": 'All "shoes": yes', "schedule": "30 1 * * *"}
    written = new_pipeline.create({**answers, "owner": None, "model_name": None})
    assert written == [root / "configs/classifier/shoes.yaml", root / "configs/pipelines/shoes.yaml"]
    pipeline = yaml.safe_load(written[1].read_text())
    assert (pipeline["description"], pipeline["schedule"]) == (answers["description"], "30 1 * * *")
    assert (pipeline["data"]["group"], pipeline["publish"]["model_name"]) == ("footwear", "shoes")
    assert pipeline["train"]["config"] == "configs/classifier/shoes.yaml"
    assert yaml.safe_load(written[0].read_text())["experiment_name"] == "shoes"


def test_a_new_pipeline_is_told_how_many_golden_pictures_its_margin_needs(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "training_jobs.gate plan --margin 0.01 --classes <yours>" in new_pipeline.golden_plan(), "no environment yet"
    monkeypatch.setattr(new_pipeline, "ROOT", Path(__file__).resolve().parents[2])
    said = new_pipeline.golden_plan()
    found = [
        (float(margin), int(count.replace(",", ""))) for count, margin in re.findall(r"([\d,]+) for ([\d.]+)", said)
    ]
    assert [margin for margin, _ in found] == [0.5, 1, 2, 5]
    assert sorted((count for _, count in found), reverse=True) == [count for _, count in found]
    assert found[0][1] > 10_000 > found[-1][1]


def test_without_a_schedule_it_runs_by_hand_only(root: Path) -> None:
    written = new_pipeline.create({"name": "shoes", "schedule": ""})
    assert "schedule" not in yaml.safe_load(written[1].read_text())


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({"name": "my shoes"}, "'my shoes' is no name for a pipeline"),
        ({"name": "../up"}, "is no name for a pipeline"),
        ({"name": "shoes", "group": "a b"}, "'a b' is no name for a group"),
        ({"name": "shoes", "model_name": "x/../y"}, "is no name for a model"),
        ({}, "say NAME="),
    ],
)
def test_names_that_nothing_could_be_called_by_are_refused(root: Path, answers: dict[str, str], says: str) -> None:
    with pytest.raises(LocalStackError, match=says):
        new_pipeline.create(dict(answers))
    assert not (root / "configs").exists()


def test_files_that_are_there_are_left_alone(root: Path) -> None:
    new_pipeline.create({"name": "shoes"})
    before = (root / "configs/pipelines/shoes.yaml").read_text()
    (root / "configs/classifier/shoes.yaml").unlink()
    with pytest.raises(LocalStackError, match=r"pipelines/shoes\.yaml is there already: nothing was written"):
        new_pipeline.create({"name": "shoes", "group": "other"})
    assert (root / "configs/pipelines/shoes.yaml").read_text() == before
    assert not (root / "configs/classifier/shoes.yaml").exists()
