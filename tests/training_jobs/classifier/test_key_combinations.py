"""Any two keys of the configuration file train together: every pair of their values, one step each."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from jobkit import job
from jobkit.bottle import FolderBottle
from jobkit.classifier import Classifier, load_classifier
from jobkit.model_spec import ModelSpec
from tests.support.several_labels import GROUP, make_snapshot
from tests.training_jobs.classifier.pairwise import pairwise
from tests.training_jobs.classifier.support import draw
from tests.training_jobs.classifier.test_every_key import keys
from training_jobs.classifier.config import Config
from training_jobs.classifier.training import sound_gradients
from training_jobs.train_classifier import Arguments, run

GEOMETRY = [{"type": "random_crop_from_borders", "p": 1}, {"type": "shift_scale_rotate"}, {"type": "randaugment"}]
COLOR = [{"type": "random_brightness_contrast"}, {"type": "trivialaugment", "p": 1}, {"type": "coarse_dropout"}]
# Values of a key, or of keys that only make sense together. `<folder>` is the test's own.
FACTORS: dict[str, list[dict[str, Any]]] = {
    "seed": [{"seed": 0}, {"seed": 7}],
    "labels": [
        {"dataset.label_source": "folders", "dataset.val_part": 0.3, "model.n_classes": 3},
        {"dataset.label_source": "rotation"},
        {"dataset.label_source": "folders", "inference.flip_tta": "both"},  # a mirror changes the labels of rotation
    ],
    "temperature_scaling": [{"inference.temperature_scaling": False}, {"inference.temperature_scaling": True}],
    "criterion": [{"criterion.type": "cross_entropy"}, {"criterion.type": "focal", "criterion.focal_gamma": 0.5}],
    "label_smoothing": [{"criterion.label_smoothing": 0.0}, {"criterion.label_smoothing": 0.1}],
    "class_weights": [{"criterion.class_weights": None}, {"criterion.class_weights": "balanced"}],
    "image_size": [{"dataset.image_size": 16}, {"dataset.image_size": 24}],
    "backgrounds": [
        {},
        {
            "dataset.insert_background_p": 1.0,
            "dataset.background_max_ratio": 1.5,
            "directories.backgrounds": "<folder>/pictures",
        },
    ],
    "data_fraction": [{"dataset.data_fraction": 1.0}, {"dataset.data_fraction": 0.5}],
    "batches": [
        {"dataset.data_loaders.train_batch_size": 12},
        {"dataset.data_loaders.train_batch_size": 5, "dataset.data_loaders.val_batch_size": 2},
    ],
    "sampling": [{"dataset.data_loaders.sampling": "shuffle"}, {"dataset.data_loaders.sampling": "balanced"}],
    "geometry": [
        {},
        {"dataset.pre_transforms": [{"type": "resize"}], "dataset.post_transforms": [{"type": "to_tensor"}]},
        {"dataset.post_transforms": [{"type": "longest_max_size"}, {"type": "pad_if_needed"}, {"type": "normalize"}],
         "dataset.pre_transforms": []},
        {"dataset.pre_transforms": [{"type": "longest_max_size"}, {"type": "pad_if_needed", "border": "wrap"}]},
    ],
    "train_augmentations": [{}, {"dataset.train_augmentations": GEOMETRY}, {"dataset.train_augmentations": COLOR}],
    "val_augmentations": [{}, {"dataset.val_augmentations": GEOMETRY}],
    "augmentation_p_schedule": [
        {},
        {
            "dataset.augmentation_p_schedule.start_p": 0.5,
            "dataset.augmentation_p_schedule.end_p": 0.9,
            "dataset.augmentation_p_schedule.exponent_factor": 2.0,
        },
    ],
    "backbone": [{"model.backbone_name": "test_resnet"}, {"model.backbone_name": "test_efficientnet"}],
    "weights": [{}, {"model.load_from": "<backbone>.ckpt", "model.pretrained": True},
                {"model.load_from": "other_<backbone>.ckpt", "model.load_mismatched": True}],
    "drop_rate": [{"model.drop_rate": None}, {"model.drop_rate": 0.3}],
    "drop_path_rate": [{"model.drop_path_rate": None}, {"model.drop_path_rate": 0.2}],
    "frozen_epochs": [{"training.frozen_epochs": 0}, {"training.frozen_epochs": 1}],
    "arguments": [{"model.arguments": {}}, {"model.arguments": {"output_stride": 16}}],
    "in_channels": [{"model.in_channels": 3}, {"model.in_channels": 1}],
    "optimizer": [{"optimizer.type": name} for name in ("adamw", "adamw_8bit", "adam", "sgd")],
    "rates": [
        {"optimizer.lr": 1e-3},
        {"optimizer.lr_type": "two_lrs", "optimizer.backbone_lr": 1e-4, "optimizer.fc_lr": 1e-3},
    ],
    "layer_decay": [{"optimizer.layer_decay": None}, {"optimizer.layer_decay": 0.7}],
    "weight_decay": [{"optimizer.weight_decay": 0.0}, {"optimizer.weight_decay": 0.1}],
    "moments": [{}, {"optimizer.betas": [0.0, 0.9], "optimizer.eps": 1e-6}],
    "anneal_strategy": [{"scheduler.anneal_strategy": "cos"}, {"scheduler.anneal_strategy": "linear"}],
    "scheduler": [
        {},
        {"scheduler.div_factor": 1000.0, "scheduler.final_div_factor": 1.0, "scheduler.pct_start": 0.1},
    ],
    "precision": [{"training.precision": value} for value in (32, 16, "bf16")],
    "accumulate": [{"training.accumulate_grad_batches": 1}, {"training.accumulate_grad_batches": 3}],
    "max_grad_norm": [{"training.max_grad_norm": None}, {"training.max_grad_norm": 1.0}],
    "compile": [{"training.compile": False}, {"training.compile": True}],
    "ema_decay": [{"training.ema_decay": None}, {"training.ema_decay": 0.9}],
    "save_checkpoints": [{"training.save_checkpoints": True}, {"training.save_checkpoints": False}],
    "save_metrics": [{"training.save_metrics": True}, {"training.save_metrics": False}],
    "best_by": [{"training.best_by": name} for name in ("macro_f1", "accuracy", "loss")],
    "patience": [{"training.patience": None}, {"training.patience": 1}],
    "out_of_memory": [{"training.out_of_memory": "stop"}, {"training.out_of_memory": "accumulate"}],
    "mixing": [{}, {"training.mixing.strategy": "mixup", "training.mixing.p": 0.5},
               {"training.mixing.strategy": "cutmix", "training.mixing.alpha": 1.0}],
}  # fmt: skip
NOT_COMBINED = {
    "experiment_name": "a name",
    "directories.images": "the same in all rows",
    "directories.models": "the same in all rows",
    "dataset.max_side": "it refuses pictures and changes no step: test_examples.py",
    "dataset.people_crops": "needs a database: test_people.py",
    "dataset.data_loaders.num_workers": "processes would take most of the time: test_resume.py",
    "training.epochs": "one in all rows",
}
# A loss for several labels takes other labels, and some keys are refused with it: test_config_file.py.
SEVERAL: dict[str, list[dict[str, Any]]] = {
    **FACTORS,
    "labels": [{"dataset.label_source": "snapshot"}, {"inference.flip_tta": "both"}],
    "criterion": [{"criterion.type": "binary_cross_entropy"}],
    "temperature_scaling": [{"inference.temperature_scaling": False}],
    "sampling": [{"dataset.data_loaders.sampling": "shuffle"}],
}
QUICK, QUICK_SEVERAL = 8, 2  # of the first, rows in which 9 of 10 pairs meet already
ROWS, SEVERAL_ROWS = (
    pairwise({name: [json.dumps(value) for value in values] for name, values in factors.items()})
    for factors in (FACTORS, SEVERAL)
)


def test_every_pair_of_values_stands_in_a_row() -> None:
    seen = {((a, row[a]), (b, row[b])) for row in ROWS for a, b in combinations(FACTORS, 2)}
    wanted = sum(len(FACTORS[a]) * len(FACTORS[b]) for a, b in combinations(FACTORS, 2))
    assert len(seen) == wanted


def test_every_key_is_combined() -> None:
    combined = {key for values in FACTORS.values() for value in values for key in value}
    assert combined | NOT_COMBINED.keys() == set(keys(Config))
    assert not combined & NOT_COMBINED.keys()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A handful of pictures, and checkpoints to start from."""
    made = tmp_path_factory.mktemp("files")
    draw(made / "pictures", 4)
    (made / "models").mkdir()
    for name in ("test_resnet", "test_efficientnet"):
        state = Classifier(name, 5).state_dict()
        torch.save(state, made / "models" / f"{name}.ckpt")
        half = dict(list(state.items())[: len(state) // 2])
        torch.save({**half, "backbone.extra.weight": torch.zeros(2)}, made / "models" / f"other_{name}.ckpt")
    return made


def file_of(row: dict[str, str], folder: Path) -> dict[str, Any]:
    """Return the content of the configuration file that `row` stands for."""
    content: dict[str, Any] = {
        "directories": {"images": str(folder / "pictures"), "models": str(folder / "models")},
        "training": {"epochs": 1},
        "dataset": {"data_loaders": {"num_workers": 0}},
    }
    for values in row.values():
        for key, value in json.loads(values.replace("<folder>", str(folder))).items():
            *sections, name = key.split(".")
            place = content
            for section in sections:
                place = place.setdefault(section, {})
            place[name] = value
    model = content["model"]
    if "load_from" in model:
        model["load_from"] = model["load_from"].replace("<backbone>", model["backbone_name"])
    return content


@pytest.fixture(autouse=True)
def eager_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real back end takes half a minute a model; what may go wrong with other keys is the tracing."""
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled(module, backend="eager"))


@pytest.mark.parametrize(
    "row", [*ROWS[:QUICK], *(pytest.param(row, marks=pytest.mark.slow) for row in ROWS[QUICK:])], ids=range(len(ROWS))
)
def test_any_two_keys_train_together(
    row: dict[str, str], folder: Path, tmp_path: Path, context: job.Context, bottle: FolderBottle
) -> None:
    check_row(Arguments(config_filename=written(row, folder, tmp_path)), context, bottle)


@pytest.mark.parametrize(
    "row",
    [
        *SEVERAL_ROWS[:QUICK_SEVERAL],
        *(pytest.param(row, marks=pytest.mark.slow) for row in SEVERAL_ROWS[QUICK_SEVERAL:]),
    ],
    ids=range(len(SEVERAL_ROWS)),
)
def test_any_two_keys_train_together_on_pictures_of_several_labels(
    row: dict[str, str], folder: Path, tmp_path: Path, context: job.Context, bottle: FolderBottle
) -> None:
    snapshot_id = make_snapshot(bottle, 32).summary.snapshot_id
    path = written(row, folder, tmp_path)
    check_row(Arguments(config_filename=path, cat=GROUP, snapshot_id=snapshot_id), context, bottle)


def written(row: dict[str, str], folder: Path, place: Path) -> Path:
    path = place / "config.yaml"
    path.write_text(yaml.safe_dump(file_of(row, folder)))
    return path


def check_row(arguments: Arguments, context: job.Context, bottle: FolderBottle) -> None:
    """Train by a file; its scores and weights are numbers."""
    result = run(arguments, context)
    assert result.epochs == 1
    assert all(math.isfinite(value) for value in result.metrics.values())
    spec = ModelSpec.model_validate_json(bottle.read(f"{result.experiment}/model.json"))
    weights = load_classifier(bottle.local(result.checkpoint), spec).state_dict()
    wrong = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    assert not wrong


def test_gradients_of_bf16_hold_nothing_of_what_stood_in_memory() -> None:
    """A convolution over features of 1 x 1, where torch's own gradients now and then have NaN."""
    torch.manual_seed(0)
    for _ in range(60):
        for size in (5_000, 20_000, 80_000, 300_000):
            torch.full((size,), math.nan)
        convolution = torch.nn.Conv2d(48, 64, 3, stride=2, padding=1, bias=False)
        with sound_gradients("bf16", gpu=False), torch.autocast("cpu", torch.bfloat16):
            convolution(torch.randn(12, 48, 1, 1)).float().sum().backward()
        gradient = convolution.weight.grad
        assert gradient is not None and not gradient[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]].any()
