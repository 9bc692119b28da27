"""A classifier of pictures with several labels: trained, exported, verified, packaged, served, and beaten or not."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import average_precision_score, f1_score

from conversion_jobs import predict
from conversion_jobs.triton.served_model import served_checks
from conversion_jobs.verification.checks import LabelAgreement, judge_all
from jobkit.bottle import FolderBottle
from jobkit.classifier import averaged, load_classifier
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment
from jobkit.job import Context
from jobkit.model_spec import ModelSpec, prepare
from jobkit.snapshot import Snapshot, read_snapshot
from nightshift_common.options.gate import GateOptions
from tests.conversion_jobs.conftest import Trained
from tests.conversion_jobs.serving import Serving
from tests.support.several_labels import COLORS, GROUP, make_snapshot
from training_jobs import evaluate, gate, train_classifier
from training_jobs.scoring.classification import MultiLabelEvaluation

CONFIG = {
    "criterion": {"type": "binary_cross_entropy", "class_weights": "balanced"},
    "dataset": {"image_size": 24, "data_loaders": {"train_batch_size": 16, "num_workers": 0}},
    "model": {"backbone_name": "test_resnet"},
    "optimizer": {"lr": 5e-3},
    "training": {"epochs": 6},
    "inference": {"flip_tta": "horizontal"},
}


def train(context: Context, snapshot_id: str, folder: Path, **options: object) -> train_classifier.Result:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return train_classifier.run(
        train_classifier.Arguments(config_filename=path, cat=GROUP, snapshot_id=snapshot_id, **options), context
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, train_classifier.Result]:
    """A bottle with a snapshot and a training; and what it said."""
    folder = tmp_path_factory.mktemp("several")
    bottle = FolderBottle(folder / "bottle")
    snapshot_id = make_snapshot(bottle).summary.snapshot_id
    context = Context(folder, None)
    context.bottle = bottle
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("NIGHTSHIFT_BOTTLE", str(bottle.root))
        return bottle.root, snapshot_id, train(context, snapshot_id, folder)


@pytest.fixture
def made(
    finished: tuple[Path, str, train_classifier.Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Trained:
    """A copy of it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "bottle"
    shutil.copytree(finished[0], root)
    monkeypatch.setenv("NIGHTSHIFT_BOTTLE", str(root))
    return Trained(FolderBottle(root), finished[1], finished[2].experiment, Context(tmp_path, None))


def snapshot_of(made: Trained) -> Snapshot:
    return read_snapshot(made.bottle, GROUP, made.snapshot_id)


def inputs_of(made: Trained, spec: ModelSpec, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the prepared pictures of a side, and 0 or 1 for each class."""
    samples = [s for s in snapshot_of(made).samples if s.split == split]
    pictures = np.stack([prepare(made.bottle.local(s.path), spec.preprocessing) for s in samples])
    return pictures, np.array([[color in s.labels for color in COLORS] for s in samples], int)


def test_training_learns_each_color_and_hands_over_probabilities(
    made: Trained, finished: tuple[Path, str, train_classifier.Result]
) -> None:
    experiment, metrics = Experiment(made.experiment), finished[2].metrics
    spec = ModelSpec.model_validate_json(made.bottle.read(experiment.spec))
    assert (spec.multi_label, spec.output, spec.labels, spec.calibration) == (True, "probabilities", [*COLORS], None)
    pictures, truth = inputs_of(made, spec, "val")
    script = torch.jit.load(made.bottle.local(experiment.torchscript))
    with torch.inference_mode():
        found = script(torch.from_numpy(pictures)).numpy()
        model = load_classifier(made.bottle.local(experiment.best_checkpoint), spec)
        logits = averaged(model, torch.from_numpy(pictures), "horizontal")
    assert found == pytest.approx(logits.sigmoid().numpy(), abs=1e-5), "mirror images are averaged before the sigmoid"
    assert metrics["val_macro_f1"] == pytest.approx(f1_score(truth, found >= 0.5, average="macro"), abs=1e-6)
    assert metrics["val_map"] == pytest.approx(average_precision_score(truth, found), abs=1e-6)
    assert metrics["val_accuracy"] == pytest.approx(((found >= 0.5) == truth).all(1).mean())
    assert metrics["val_macro_f1"] > 0.9 and not truth.any(1).all(), "pictures that show none are among them"
    rows = made.bottle.read(f"{made.experiment}/csv_logs/metrics.csv").decode().splitlines()
    best = dict(zip(rows[0].split(","), rows[1 + finished[2].best_epoch].split(","), strict=True))
    assert float(best["val_macro_f1"]) == pytest.approx(metrics["val_macro_f1"], abs=1e-4)
    assert float(best["val_loss"]) == pytest.approx(metrics["val_loss"], abs=1e-3)
    page = made.bottle.read(f"{made.experiment}/report.html").decode()
    assert "Worst mistakes" in page and "Confusion" not in page


def test_a_graph_that_shows_another_class_is_seen_where_the_likeliest_is_the_same() -> None:
    source = np.array([[0.9, 0.6, 0.1], [0.2, 0.1, 0.3]], np.float32)
    other = np.array([[0.9, 0.4, 0.1], [0.2, 0.1, 0.3]], np.float32)
    (same,) = judge_all([LabelAgreement(1.0)], source, source, ["a", "b"])
    (wrong,) = judge_all([LabelAgreement(1.0)], source, other, ["a", "b"])
    assert same.passed and not wrong.passed
    assert (wrong.value, wrong.worst_picture) == (0.5, "a")
    names = {type(check).__name__ for check in served_checks("onnx", "multi_label")}
    assert names == {"Finite", "Close", "LabelAgreement"}


def test_other_kinds_of_snapshot_loss_and_options_are_refused(
    made: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=r"temperature_scaling: .*not with criterion.type binary"):
        train(made.context, made.snapshot_id, tmp_path, temperature_scaling=True)
    monkeypatch.setitem(CONFIG, "criterion", {"type": "focal"})
    with pytest.raises(ConfigurationError, match=r"is multi-label, and criterion.type is focal; valid: binary_cross"):
        train(made.context, made.snapshot_id, tmp_path)


def evaluated(made: Trained, model_name: str) -> tuple[evaluate.Result, MultiLabelEvaluation]:
    result = evaluate.run(
        evaluate.Arguments(
            group=GROUP, snapshot_id=made.snapshot_id, experiment=made.experiment, model_name=model_name
        ),
        made.context,
    )
    return result, MultiLabelEvaluation.model_validate_json(made.bottle.read(result.report))


def test_it_is_verified_packaged_served_and_compared_with_its_successor(
    made: Trained, served: Serving, model: str
) -> None:
    made.export()
    verdicts = {verdict.name: verdict for verdict in made.verify().verdicts}
    assert verdicts["label_agreement"].passed and "top1_agreement" not in verdicts
    package = made.package(model)
    with zipfile.ZipFile(made.bottle.local(package.archive)) as archive:
        meta = json.loads(archive.read("meta.json"))
    assert (meta["multi_label"], meta["output"], meta["num2label"]["2"]) == (True, "probabilities", "red")
    first, alone = evaluated(made, model)
    assert alone.champion is None
    version = made.publish(model).version
    made.deploy(version, model, answers=first.answers)
    spec = ModelSpec.model_validate_json(made.bottle.read(Experiment(made.experiment).spec))
    sample = next(s for s in snapshot_of(made).split("golden") if s.labels == ["blue", "red"])
    answer = predict.run(predict.Arguments(model_name=model, picture=str(made.bottle.local(sample.path))), made.context)
    assert answer.labels is not None and answer.classes is not None
    assert (sorted(answer.labels), answer.version) == (["blue", "red"], version)
    assert sum(found.probability for found in answer.classes) > 1.2, "each class has a probability of its own"

    paths = Experiment(made.experiment)
    worse = torch.load(made.bottle.local(paths.best_checkpoint), weights_only=True)
    worse["state_dict"]["fc.bias"] += torch.tensor([0.0, 0.0, -30.0])  # never says red
    candidate = load_classifier(made.bottle.local(paths.best_checkpoint), spec)
    candidate.load_state_dict(worse["state_dict"])
    pictures, truth = inputs_of(made, spec, "golden")
    script = torch.jit.trace(torch.nn.Sequential(candidate, torch.nn.Sigmoid()), torch.from_numpy(pictures[:2]))
    torch.jit.save(script, made.bottle.path(paths.torchscript))
    _, evaluation = evaluated(made, model)
    assert evaluation.champion is not None and evaluation.comparison is not None
    assert evaluation.champion.metrics == pytest.approx(alone.candidate.metrics, abs=0.02)
    with torch.inference_mode():
        found = script(torch.from_numpy(pictures)).numpy()
    wanted = f1_score(truth, found >= 0.5, average="macro", zero_division=0)
    assert evaluation.candidate.metrics["macro_f1"] == pytest.approx(wanted)
    assert evaluation.comparison.gains["macro_f1"].value < -0.2
    assert evaluation.mistakes and all("red" in m.label and "red" not in m.predicted for m in evaluation.mistakes[:3])
    decision = gate.decide(evaluation, GateOptions(metric="map", max_slice_loss=0.1, min_support=5))
    assert not decision.promote and any("class/red loses" in reason for reason in decision.failed)
    assert gate.decide(alone, GateOptions(metric="map", floor=0.9)).promote


def test_a_model_of_one_label_is_no_candidate_for_pictures_of_several(made: Trained) -> None:
    key = Experiment(made.experiment).spec
    spec = ModelSpec.model_validate_json(made.bottle.read(key))
    made.bottle.write(key, spec.model_copy(update={"multi_label": False}).model_dump_json())
    with pytest.raises(DataValidationError, match=r"for pictures of one label each, and snapshot .* of several labels"):
        evaluated(made, "none")


def test_a_spec_of_several_labels_takes_no_temperature() -> None:
    with pytest.raises(ValueError, match="gives probabilities"):
        ModelSpec.model_validate(
            {"group": "g", "architecture": "a", "labels": ["a"], "multi_label": True, "preprocessing":
             {"height": 8, "width": 8}}
        )  # fmt: skip
