"""README.md, literally: a folder of photographs and a published checkpoint on a disk become a served model.

Of the commands everything runs but `make up`, in whose place are a Triton and a model storage of the tests; photographs
and checkpoint are made here. The shell writes out each command line; the jobs run in this process.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from jobkit import job
from jobkit.bottle import FolderBottle
from jobkit.classifier import load_classifier
from jobkit.model_spec import ModelSpec, prepare
from tests.conversion_jobs.serving import TOKEN, Serving, serving
from tests.support.one_thread import one_thread  # noqa: F401 - for every test of this file

ROOT = Path(__file__).resolve().parents[2]
HEADING = "## Fine-tune a published model on your own photographs"


@pytest.fixture
def served(postgres_url: str, tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path, postgres_url) as found:
        yield found


def commands() -> list[str]:
    section = (ROOT / "README.md").read_text().split(HEADING)[1].split("\n## ")[0]
    return section.split("```bash\n")[1].split("```")[0].splitlines()


def make_photographs(folder: Path) -> None:
    generator = np.random.default_rng(3)
    for channel, name in enumerate(("cats", "dogs")):
        for number in range(4):
            picture = generator.integers(0, 90, (60, 80, 3), dtype=np.uint8)
            picture[10:50, 10:60, channel] += 150
            (folder / name).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / name / f"{number}.jpg"), picture)


@pytest.mark.slow
def test_the_readme_alone_fine_tunes_and_serves_a_model(
    served: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_photographs(tmp_path / "your" / "photographs")
    (tmp_path / "your" / "disk").mkdir()
    torch.manual_seed(2)
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "your" / "disk" / "resnet18.safetensors")
    file = Path("configs") / "classifier" / "own_photographs.yaml"
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(
        (ROOT / file).read_text().replace("image_size: 224", "image_size: 64")
    )  # it is quicker
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "NIGHTSHIFT_TASK_INSTANCE", "NIGHTSHIFT_SIGNING_KEY"):
        monkeypatch.delenv(name, raising=False)
    ours = {  # of what `make env` gives
        "NIGHTSHIFT_BOTTLE": str(tmp_path / ".nightshift" / "bottle"),
        "NIGHTSHIFT_STORAGE_URL": served.url,
        "NIGHTSHIFT_TRITON_URL": served.triton.http,
        "NIGHTSHIFT_STORAGE_TOKEN": TOKEN,
    }
    results: dict[str, Any] = {}
    for line in commands():
        if line.startswith("export "):
            for assignment in line.removeprefix("export ").split():
                name, _, value = assignment.partition("=")
                if name != "PATH":
                    monkeypatch.setenv(name, os.path.expandvars(value))
        elif line == 'eval "$(make env)"':
            for name, value in ours.items():
                monkeypatch.setenv(name, value)
        elif line.startswith("ln "):
            subprocess.run(line.replace("/your/", f"{tmp_path}/your/"), shell=True, check=True)
        elif line.startswith("python -m "):
            module, result = ran(line.replace("/your/", f"{tmp_path}/your/"), tmp_path)
            results[module + (" --check" if "--check" in line else "")] = result
        else:
            assert line == "make up"
    assert results["training_jobs.train_classifier --check"].total_seconds > 0
    trained, fetched = results["training_jobs.train_classifier"], results["conversion_jobs.fetch_weights"]
    bottle = FolderBottle(tmp_path / ".nightshift" / "bottle")
    spec = ModelSpec.model_validate_json(bottle.read(f"{trained.experiment}/model.json"))
    assert spec.initial_weights == fetched.weights and spec.labels == ["cats", "dogs"]
    meta = json.loads(bottle.read("inference_models/own_photographs/inference_model/meta.json"))
    assert meta["initial_weights"] == fetched.weights.model_dump()
    answer, picture = results["conversion_jobs.predict"], prepare(Path("photographs/cats/1.jpg"), spec.preprocessing)
    with torch.inference_mode():
        logits = load_classifier(bottle.local(trained.checkpoint), spec)(torch.from_numpy(picture)[None])
    assert (answer.label, answer.version) == (spec.labels[int(logits.argmax())], "0.0.1")
    assert answer.probability == pytest.approx(float(logits.softmax(1).max()), abs=1e-4)
    assert len(results) == 9


def ran(line: str, folder: Path) -> tuple[str, Any]:
    """Run a job as its command line says; return its name and its result."""
    written = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {line.removeprefix('python -m ')}"], check=True, capture_output=True, text=True
    )
    name, *options = written.stdout.splitlines()
    module = importlib.import_module(name)
    epochs = ["--epochs", "2"] if name.endswith("train_classifier") else []  # of ten
    run = getattr(module, "start", module.run)
    return name, run(job.parse(module.Arguments, [*options, *epochs]), job.Context(folder, None))
