"""What `make run ARGS="--pipeline X"` finds out about a pipeline before it starts anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from local import __main__ as command_line
from local.pipelines import served_model
from local.run import Retraining
from local.settings import ROOT, LocalStackError, Settings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "pipelines"
    found.mkdir()
    (found / "night_birds.yaml").write_text("publish: {model_name: birds}\n")
    (found / "digits.yaml").write_text("publish:\n  model_name: digits\n")
    monkeypatch.setenv("NIGHTSHIFT_PIPELINES", str(found))
    return found


def test_the_served_model_is_the_one_that_the_pipeline_publishes(folder: Path) -> None:
    assert served_model("night_birds") == "birds"


def test_without_a_folder_of_its_own_the_pipelines_are_those_of_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIGHTSHIFT_PIPELINES", raising=False)
    assert served_model("digits") == "digits"


@pytest.mark.parametrize("name", ["bird", "", "../pipelines/digits", "digits.yaml"])
def test_an_unknown_pipeline_lists_the_known_ones(folder: Path, name: str) -> None:
    with pytest.raises(LocalStackError, match=r"has no pipeline .*; there is: digits, night_birds"):
        served_model(name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("publish: {model_name: [a]}", "publish.model_name is .'a'., not a name"),
        ("publish: {}", "publish.model_name is None, not a name: letters"),
        ("- a list", "publish.model_name is None"),
        ("publish: {", r"digits\.yaml:1: this is not YAML"),
    ],
)
def test_a_file_that_names_no_model_is_refused(folder: Path, text: str, says: str) -> None:
    (folder / "digits.yaml").write_text(text)
    with pytest.raises(LocalStackError, match=says):
        served_model("digits")


def test_an_unknown_pipeline_starts_nothing(folder: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "NIGHTSHIFT_STATE": str(tmp_path / "state")}
    done = subprocess.run(
        [sys.executable, "-m", "local", "run", "--pipeline", "birds"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "has no pipeline 'birds'; there is: digits, night_birds" in done.stdout
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(("label", "probability"), [("a", 1.0), (None, None)], ids=["a class", "no object"])
def test_the_model_that_is_asked_is_the_pipelines(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str | None, probability: float | None
) -> None:
    """Stands in for the stack, which takes minutes to start: what the command line hands on is what matters here."""
    asked: list[tuple[str, ...]] = []

    def retrain(_: Settings, dag_id: str, *__: object) -> Retraining:
        return Retraining(dag_id, "run", "success", 1.0, {"pull_dataset": {
            "snapshot_id": "s", "group": "g", "pictures": 1, "labels": ["a"]
        }})  # fmt: skip

    def ask(_: Settings, *names: str) -> dict[str, Any]:
        asked.append(names)
        answer = {"picture": "p", "label": label, "truth": "a", "version": "1"}
        return {**answer, "probability": probability, "milliseconds": 1.0}

    monkeypatch.setattr(command_line, "retrain", retrain)
    monkeypatch.setattr(command_line, "ask_served_model", ask)
    monkeypatch.setattr(command_line, "console", Console(quiet=True))
    for name in ("up", "down"):
        monkeypatch.setattr(f"local.stack.{name}", lambda *_, **__: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(command_line, "_show_addresses", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["local", "run", "--once", "--pipeline", "night_birds"])
    monkeypatch.setenv("NIGHTSHIFT_STATE", str(tmp_path / "state"))
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 0
    assert asked == [("birds", "g", "s")]
