"""Every key of the configuration file changes what is trained: a key that were ignored would change nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import BaseModel

from jobkit.bottle import FolderBottle
from tests.training_jobs.classifier.support import config, draw, examples, fit
from training_jobs.classifier import data, training
from training_jobs.classifier.config import Config
from training_jobs.classifier.examples import Examples, reduced

SHIFT = [{"type": "shift_scale_rotate", "p": 1.0}]


@dataclass
class Case:
    """A key's other value, and what else has to be set in both runs for the key to matter."""

    value: Any
    both: dict[str, Any] = field(default_factory=dict)


CASES: dict[str, Case] = {
    "seed": Case(1),
    "criterion.label_smoothing": Case(0.1),
    "criterion.class_weights": Case([1.0, 2.0, 3.0]),
    "criterion.type": Case("focal"),
    "criterion.focal_gamma": Case(0.5, {"criterion__type": "focal"}),
    "dataset.data_loaders.sampling": Case("balanced"),
    "model.arguments": Case({"output_stride": 8}),
    "optimizer.layer_decay": Case(0.7),
    "dataset.image_size": Case(24),
    "dataset.data_loaders.train_batch_size": Case(6),
    "dataset.pre_transforms": Case([{"type": "resize"}]),
    "dataset.train_augmentations": Case(SHIFT),
    "dataset.val_augmentations": Case(
        [{"type": "random_brightness_contrast", "p": 1.0, "brightness_limit": [0.5, 0.5]}]
    ),
    "dataset.post_transforms": Case([{"type": "normalize", "mean": [0.1, 0.1, 0.1], "std": [1.0, 1.0, 1.0]}]),
    "dataset.augmentation_p_schedule.start_p": Case(0.0, {"dataset__train_augmentations": SHIFT}),
    "dataset.augmentation_p_schedule.end_p": Case(0.0, {"dataset__train_augmentations": SHIFT}),
    "dataset.augmentation_p_schedule.exponent_factor": Case(
        9.0,
        {
            "dataset__train_augmentations": SHIFT,
            "dataset__augmentation_p_schedule__start_p": 0.0,
            "training__epochs": 3,
        },
    ),
    "model.backbone_name": Case("test_vit", {"dataset__image_size": 160}),
    "model.in_channels": Case(1),
    "model.drop_rate": Case(0.5),
    "model.drop_path_rate": Case(0.5),
    "training.frozen_epochs": Case(1),
    "optimizer.type": Case("sgd"),
    "optimizer.lr": Case(2e-3),
    "optimizer.weight_decay": Case(0.5),
    "optimizer.eps": Case(1e-2),
    "optimizer.betas": Case([0.5, 0.9]),
    "scheduler.anneal_strategy": Case("linear"),
    "scheduler.div_factor": Case(1000.0),
    "scheduler.final_div_factor": Case(1.0),
    "scheduler.pct_start": Case(0.7),
    "training.epochs": Case(3),
    "training.precision": Case("bf16"),
    "training.accumulate_grad_batches": Case(3),
    "training.max_grad_norm": Case(0.01),
    "training.ema_decay": Case(0.5),
    "training.save_checkpoints": Case(False),
    "training.save_metrics": Case(False),
    "training.mixing.strategy": Case("mixup"),
    "training.mixing.p": Case(0.3, {"training__mixing__strategy": "mixup"}),
    "training.mixing.alpha": Case(5.0, {"training__mixing__strategy": "cutmix"}),
    "inference.flip_tta": Case("horizontal"),
}
ELSEWHERE = {  # keys with a test of their own below, or in the file that is named
    "experiment_name": "test_job.py",
    "directories.images": "test_job.py",
    "directories.models": "test_job.py",
    "directories.backgrounds": "test_backgrounds_are_read_from_their_folder",
    "dataset.label_source": "test_job.py",
    "dataset.insert_background_p": "test_backgrounds_are_read_from_their_folder",
    "dataset.background_max_ratio": "test_backgrounds_are_read_from_their_folder",
    "dataset.data_fraction": "test_a_fraction_of_the_pictures_is_used",
    "dataset.people_crops": "test_people.py",
    "dataset.max_side": "test_examples.py",
    "dataset.val_part": "test_examples.py",
    "dataset.data_loaders.val_batch_size": "test_loaders_follow_the_file",
    "dataset.data_loaders.num_workers": "test_loaders_follow_the_file",
    "model.load_from": "test_weights.py",
    "model.load_mismatched": "test_weights.py",
    "model.pretrained": "test_weights.py",
    "model.n_classes": "test_examples.py",
    "optimizer.lr_type": "test_optimization.py",
    "optimizer.backbone_lr": "test_optimization.py",
    "optimizer.fc_lr": "test_optimization.py",
    "training.compile": "test_weights.py",
    "training.best_by": "test_the_best_epoch_is_chosen_by_the_named_score",
    "training.out_of_memory": "test_training.py",
    "training.patience": "test_early_stopping.py",
    "inference.temperature_scaling": "test_inference.py",
}


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from keys(annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_key_has_a_test() -> None:
    assert sorted(keys(Config)) == sorted([*CASES, *ELSEWHERE])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, found: Examples) -> dict[str, dict[str, str]]:
    return {}


def outcome(folder: Path, chosen: Config, found: Examples) -> dict[str, str]:
    """Return what a training leaves behind, as hashes: the files, the scores of each epoch, the weights."""
    journal, content, bottle = fit(folder, chosen, found)
    rows = [{k: v for k, v in row.items() if k.startswith(("train_", "val_", "lr_"))} for row in journal.rows]
    digest = hashlib.sha256()
    for name, value in sorted(content["state_dict"].items()):
        digest.update(name.encode() + value.float().numpy().tobytes())
    return {"files": str(list(bottle.keys("models"))), "rows": str(rows), "weights": digest.hexdigest()}


@pytest.mark.parametrize("key", CASES)
def test_the_key_changes_the_training(
    key: str, found: Examples, outcomes: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    case = CASES[key]
    base = outcomes.get(str(case.both))
    if base is None:
        base = outcomes[str(case.both)] = outcome(tmp_path / "base", config(**case.both), found)
    changed = outcome(tmp_path / "changed", config(**case.both, **{key.replace(".", "__"): case.value}), found)
    assert changed != base


def test_the_same_file_gives_the_same_training(
    found: Examples, outcomes: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """Without this the tests above would pass by chance."""
    assert outcome(tmp_path / "a", config(), found) == outcome(tmp_path / "b", config(), found)


def test_backgrounds_are_read_from_their_folder(found: Examples, tmp_path: Path) -> None:
    draw(tmp_path / "backgrounds", 1)
    (tmp_path / "white").mkdir()
    cv2.imwrite(str(tmp_path / "white" / "white.png"), np.full((40, 40, 3), 255, np.uint8))

    def pictures(folder: str, p: float, ratio: float) -> np.ndarray[Any, Any]:
        chosen = config(
            directories__backgrounds=str(tmp_path / folder),
            dataset__insert_background_p=p,
            dataset__background_max_ratio=ratio,
        )
        return np.stack([data.Pictures(chosen, found.train, training=True).picture(0, i)[0] for i in range(12)])

    plain = pictures("white", 0.0, 3.0)
    pasted = pictures("white", 1.0, 3.0)
    assert (pictures("white", 1.0, 1.0) != pasted).any()
    assert (pictures("backgrounds", 1.0, 3.0) != pasted).any()
    some = pictures("white", 0.5, 3.0)
    changed = [bool((a != b).any()) for a, b in zip(plain, some, strict=True)]
    assert 1 <= sum(changed) <= 11
    validation = data.Pictures(
        config(
            directories__backgrounds=str(tmp_path / "white"),
            dataset__insert_background_p=1.0,
            dataset__background_max_ratio=3.0,
        ),
        found.train,
        training=False,
    )
    assert (np.stack([validation.picture(0, i)[0] for i in range(12)]) == plain).all()


def test_a_fraction_of_the_pictures_is_used(found: Examples) -> None:
    half = reduced(found, 0.5, seed=0)
    assert half.counts == [2, 2, 2]
    assert len(half.val) == 3
    assert reduced(found, 0.5, seed=1).train != half.train
    assert reduced(found, 1.0, seed=0) is found


def test_loaders_follow_the_file(found: Examples) -> None:
    chosen = config(
        dataset__data_loaders__train_batch_size=5,
        dataset__data_loaders__val_batch_size=2,
        dataset__data_loaders__num_workers=1,
    )
    train, val = data.loaders(chosen, found.train, found.val, 0, gpu=False)
    assert (train.num_workers, val.num_workers) == (1, 1)
    assert [len(batch[0]) for batch in train] == [5, 5]
    assert [len(batch[0]) for batch in val] == [2, 2, 2]


def test_the_best_epoch_is_chosen_by_the_named_score(found: Examples, tmp_path: Path) -> None:
    rows = [
        {"epoch": 0, "val_macro_f1": 0.9, "val_accuracy": 0.5, "val_loss": 2.0},
        {"epoch": 1, "val_macro_f1": 0.5, "val_accuracy": 0.9, "val_loss": 2.0},
        {"epoch": 2, "val_macro_f1": 0.5, "val_accuracy": 0.5, "val_loss": 1.0},
        {"epoch": 3, "val_macro_f1": 0.9, "val_accuracy": 0.9, "val_loss": 1.0},
    ]
    for number, name in enumerate(("macro_f1", "accuracy", "loss")):
        journal = training.TrainingCallback(config(training__best_by=name), FolderBottle(tmp_path), None, None)  # type: ignore[arg-type]
        journal.rows = rows
        assert journal.best["epoch"] == number  # of equals the first
