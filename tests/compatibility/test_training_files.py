"""Twelve training files with the keys and values that the older trainer's users write: ten train, two are refused.

All say `pretrained: true`, seven of them beside a `load_from`; all clip gradients, ask for `adamw_8bit` and anneal
linearly; two repeat a key, of which plain YAML would keep the last in silence.
"""

from __future__ import annotations

import math
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from jobkit.classifier import Classifier
from jobkit.errors import ConfigurationError
from jobkit.job import Context
from tests.support.one_thread import one_thread  # noqa: F401 - for every test of this file
from tests.training_jobs.classifier.support import draw
from training_jobs.train_classifier import Arguments, run

FILES = sorted((Path(__file__).parent / "training_files").glob("*.yaml"))
REPEATED = {
    "11_hgnet_mixed_twice.yaml": ["training.mixing.strategy", "training.mixing.p", "training.mixing.alpha"],
    "12_femto_decayed_twice.yaml": ["optimizer.weight_decay"],
}
TRAINED = [path for path in FILES if path.name not in REPEATED]
LARGE = ("04_femto_224", "05_femto_512", "07_efficientnet_224", "08_efficientnet_128")
BACKBONES = {
    "convnext_femto.d1_in1k": "convnext_femto/epoch=1-train_loss=0.33753-val_loss=0.01454-val_accuracy=0.99598.ckpt",
    "efficientnet_b0.ra_in1k": "efficientnet_b0/epoch=9-train_loss=0.11250-val_loss=0.00921-val_accuracy=0.99712.ckpt",
    "hgnetv2_b1.ssld_stage1_in22k_in1k":
        "hgnetv2_b1/epoch=4-train_loss=0.20411-val_loss=0.01107-val_accuracy=0.99640.ckpt",
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages, backgrounds, the older trainer's checkpoints, and timm's weights where they are kept after a download."""
    folder = tmp_path_factory.mktemp("project")
    draw(folder / "data" / "pages", 2, 60, 44)
    draw(folder / "data" / "backgrounds", 1, 80, 80)
    for name, checkpoint in BACKBONES.items():
        path = folder / "data" / "models" / checkpoint
        path.parent.mkdir(parents=True)
        torch.save(Classifier(name, 4).state_dict(), path)
        model = timm.create_model(name)
        kept = folder / "hub" / f"models--{model.pretrained_cfg['hf_hub_id'].replace('/', '--')}"
        (kept / "refs").mkdir(parents=True)
        (kept / "refs" / "main").write_text("1" * 40)
        (kept / "snapshots" / ("1" * 40)).mkdir(parents=True)
        save_file(model.state_dict(), kept / "snapshots" / ("1" * 40) / "model.safetensors")
    return folder


def test_there_are_twelve_and_they_are_what_users_write() -> None:
    files = [yaml.safe_load(path.read_text()) for path in FILES]  # keeps the last of a repeated key
    assert len(files) == 12 and {file["model"]["backbone_name"] for file in files} == set(BACKBONES)
    assert all(file["model"]["pretrained"] for file in files)
    assert sum(file["model"]["load_from"] is not None for file in files) == 7
    assert all(file["training"]["max_grad_norm"] for file in files)
    assert {file["optimizer"]["type"] for file in files} == {"adamw_8bit"}
    assert {file["scheduler"]["anneal_strategy"] for file in files} == {"linear"}


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] if path.stem in LARGE else [], id=path.stem) for path in TRAINED],
)
def test_a_users_file_trains(path: Path, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(project)
    monkeypatch.delenv("NIGHTSHIFT_BOTTLE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(project / "hub"))
    result = run(Arguments(config_filename=path, epochs=1), Context(tmp_path, None))
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert (project / "data" / result.checkpoint).is_file()


@pytest.mark.parametrize("name", REPEATED)
def test_a_file_that_repeats_a_key_is_refused_by_line(name: str, tmp_path: Path) -> None:
    path = FILES[0].with_name(name)
    with pytest.raises(ConfigurationError) as refused:
        run(Arguments(config_filename=path), Context(tmp_path, None))
    lines = path.read_text().splitlines()
    found = []
    for text in str(refused.value).splitlines():
        line, key, said = text.removeprefix(f"{path}:").split(": ", 2)
        first = int(said.rpartition(" ")[2])
        assert lines[int(line) - 1].split(":")[0] == lines[first - 1].split(":")[0]
        assert lines[int(line) - 1].strip().startswith(f"{key.rpartition('.')[2]}:") and first < int(line)
        found.append(key)
    assert found == REPEATED[name]
