"""Write the two files of a new pipeline: `make new-pipeline NAME=shoes`; at a terminal it asks for the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from local.settings import ROOT, LocalStackError
from nightshift_common.names import NAME_RULE, PIPELINE_RULE, is_name, is_pipeline_name

PIPELINE = """\
# The DAG retrain_{name}. Every key is described in docs/pipelines.md.
description: {description}
owner: {owner} # who is asked when it fails
{schedule}

data:
  source: collect # or postgres, with a table that has the columns path and label
  group: {group} # what the pictures are collected under: make import FROM=<folder> GROUP={group}

train:
  config: configs/classifier/{name}.yaml
  epochs: {epochs}
  batch: 32

gate: # when a candidate replaces the model in production
  metric: macro_f1
  floor: 0.7 # what it has to reach in any case; set it to what you would put into production
  min_gain: -0.01 # by how much it may be worse than the model in production; an interval has to show that it is not
  undecided: promote # where the golden pictures are too few to show it, the numbers as measured decide; keep: no change

publish:
  model_name: {model_name} # its name in the model storage, in Triton and in MLflow
"""
TRAINING = """\
# What retrain_{name} trains. Every key is described in docs/classifier.md.
experiment_name: {name}

dataset:
  image_size: {image_size} # pictures are scaled to it and padded, pixels
  data_loaders: {{train_batch_size: 32, val_batch_size: 64}}
  train_augmentations: # what may happen to a picture without changing its class
    - {{type: random_resized_crop, scale: [0.5, 1.0], p: 1.0}}
    - {{type: horizontal_flip, p: 0.5}} # take it out where left and right mean something
    - {{type: random_brightness_contrast, brightness_limit: 0.2, contrast_limit: 0.2, p: 0.5}}

model:
  backbone_name: {backbone} # any classifier of timm
optimizer: {{type: adamw, lr: 1e-3, weight_decay: 0.02}}
scheduler: {{pct_start: 0.2}} # warm-up, a share of all steps
training: {{epochs: {epochs}, max_grad_norm: 1.0}}
"""


@dataclass(frozen=True)
class NewPipeline:
    """What the files of a pipeline are made from; `schedule` is cron in UTC, empty for runs by hand only."""

    name: str
    group: str
    description: str
    owner: str
    schedule: str
    model_name: str

    def files(self) -> dict[Path, str]:
        """Return the files, with their paths in the checkout."""
        values = {
            "name": self.name, "group": self.group, "model_name": self.model_name, "epochs": 30,
            "description": json.dumps(self.description), "owner": json.dumps(self.owner), "image_size": 128,
            "backbone": "resnet18.a1_in1k",
            "schedule": f'schedule: "{self.schedule}" # UTC' if self.schedule else "# schedule: \"0 3 * * *\" # UTC",
        }  # fmt: skip
        folder = Path(os.environ.get("NIGHTSHIFT_PIPELINES") or ROOT / "configs" / "pipelines")
        return {
            ROOT / "configs" / "classifier" / f"{self.name}.yaml": TRAINING.format(**values),
            folder / f"{self.name}.yaml": PIPELINE.format(**values),  # last: Airflow takes it up at once
        }


def golden_plan() -> str:
    """Return in sentences how many golden pictures the gate of a new pipeline needs; the job's own words.

    Where the jobs' environment is not installed yet it is the command that tells.
    """
    python = ROOT / ".venv" / "jobs" / "bin" / "python"
    command = [str(python), "-m", "training_jobs.gate", "plan", "--margin", "0.01"]
    ask = "what the gate can show: .venv/jobs/bin/python -m training_jobs.gate plan --margin 0.01 --classes <yours>"
    if not python.exists():
        return ask
    with tempfile.TemporaryDirectory(prefix="nightshift-plan-") as folder:
        environment = {**os.environ, "NIGHTSHIFT_JOB_DIR": folder}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
        if done.returncode:
            return ask
        result = json.loads((Path(folder) / "result.json").read_text())["result"]
    rows = sorted([result["needed"], *result["others"]], key=lambda row: row["margin"])
    said = ", ".join(f"{row['pictures']:,} for {100 * row['margin']:g} points" for row in rows)
    return (
        f"Golden pictures (15 % of all) that let an equal model pass in 80 % of the nights, by min_gain, "
        f"with 10 classes: {said}.\nWith yours: {ask.partition(': ')[2]}"
    )


def create(answers: dict[str, str | None]) -> list[Path]:
    """Write the files of a pipeline; return them.

    Args:
        answers: by the names of `NewPipeline`; what is None is asked for at a terminal, and has a default elsewhere.

    Raises:
        LocalStackError: a name is not valid, or one of the files is there.
    """
    name = _answer(answers, "name", "Name of the pipeline, say shoes", None)
    if not is_pipeline_name(name):
        raise LocalStackError(f"{name!r} is no name for a pipeline: {PIPELINE_RULE}")
    group = _answer(answers, "group", "Group of the pictures in collect", name)
    model_name = _answer(answers, "model_name", "Name of the model in Triton", name)
    for what, value in (("a group", group), ("a model", model_name)):
        if not is_name(value):
            raise LocalStackError(f"{value!r} is no name for {what}: {NAME_RULE}")
    new = NewPipeline(
        name=name, group=group, model_name=model_name,
        description=_answer(answers, "description", "One sentence for the list of DAGs", f"{name}: a classifier"),
        owner=_answer(answers, "owner", "Who is asked when it fails", "ml-team"),
        schedule=_answer(answers, "schedule", "When, as cron in UTC; empty: by hand only", "0 3 * * *"),
    )  # fmt: skip
    files = new.files()
    if there := [path for path in files if path.exists()]:
        raise LocalStackError(f"{', '.join(map(str, there))} is there already: nothing was written")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(files)


def _answer(answers: dict[str, str | None], key: str, question: str, default: str | None) -> str:
    given = answers.get(key)
    if given is not None:
        return given
    if not sys.stdin.isatty():
        if default is None:
            raise LocalStackError(f"say {key.upper()}=…: {question}")
        return default
    return input(f"{question}{f' [{default}]' if default else ''}: ").strip() or default or ""
