"""A conversion alone: weights from elsewhere become an experiment that goes the way of those trained here."""

from __future__ import annotations

import json
import shutil
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from torch import nn

from conversion_jobs import import_weights
from conversion_jobs.triton.served_model import Reference, ServedModel
from jobkit.bottle import open_bottle
from jobkit.errors import ConfigurationError, DataValidationError, JobError
from jobkit.experiment import Experiment
from jobkit.job import Context
from jobkit.model_spec import Preprocessing, prepare
from tests.conversion_jobs.conftest import Trained
from tests.conversion_jobs.serving import Serving
from tests.conversion_jobs.test_torch2onnx import weights_of
from tests.support.trained import LABELS


def bring(trained: Trained, weights: Path | str, folder: Path | None, **options: Any) -> import_weights.Result:
    defaults = {"family": "torchscript", "group": "footwear", "labels": "boot, shoe", "img_size": (32, 32)}
    arguments = import_weights.Arguments(**{"weights": str(weights), "pictures": folder, **defaults, **options})
    return import_weights.run(arguments, trained.context)


def imported(trained: Trained, result: import_weights.Result) -> Trained:
    return Trained(trained.bottle, result.snapshot_id, result.experiment, trained.context)


def test_foreign_weights_are_converted_verified_and_served(
    trained: Trained,
    served: Serving,
    model: str,
    tmp_path: Path,
    pictures: Path,
) -> None:
    weights, _ = weights_of("torchscript", tmp_path)
    foreign = imported(trained, bring(trained, weights, pictures))
    foreign.export()
    assert all(verdict.passed for verdict in foreign.verify().verdicts)
    published = foreign.publish(model)
    assert foreign.deploy(published.version, model).version == "0.0.1"


def test_a_classifiers_state_dict_becomes_an_experiment_like_one_trained_here(trained: Trained, pictures: Path) -> None:
    key = Experiment(trained.experiment).best_checkpoint
    options = {"family": "classifier", "architecture": "test_resnet", "labels": ",".join(LABELS), "group": "digits"}
    result = bring(trained, key, pictures, **options)
    foreign = imported(trained, result)
    assert foreign.bottle.exists(Experiment(foreign.experiment).best_checkpoint)
    foreign.export()
    foreign.verify()
    assert bring(trained, key, pictures, **options) == result, "the same weights are the same experiment"


def test_an_encoder_becomes_a_served_embedding(
    trained: Trained, served: Serving, model: str, tmp_path: Path, pictures: Path
) -> None:
    weights, options = weights_of("vit", tmp_path)  # with a head of its own, as such checkpoints come
    foreign = imported(trained, bring(trained, weights, pictures, family="vit", labels="", **options))
    foreign.export()
    verdicts = {verdict.name: verdict.passed for verdict in foreign.verify().verdicts}
    assert verdicts == {"finite": True, "close": True, "cosine": True}, "an embedding has no first class"
    published = foreign.publish(model)
    foreign.deploy(published.version, model)
    reference = Reference(foreign.bottle.local(Experiment(foreign.experiment).reference))
    with closing(ServedModel(model)) as ready:
        answer, _ = ready.ask(reference.inputs)
    encoder = timm.create_model("test_vit", num_classes=10, img_size=(64, 64))
    encoder.load_state_dict(torch.load(weights))
    encoder.reset_classifier(0)
    wanted = encoder.eval()(torch.from_numpy(reference.inputs)).detach().numpy()
    np.testing.assert_allclose(answer, wanted, atol=1e-4)


@pytest.fixture
def head(tmp_path: Path) -> tuple[Path, Path]:
    """Weights of a head with two classes, and embeddings that it takes."""
    torch.manual_seed(4)
    weights, embeddings = tmp_path / "model_multilabel.pth", tmp_path / "embeddings.npy"
    torch.save(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)).state_dict(), weights)
    np.save(embeddings, np.random.default_rng(2).normal(size=(12, 16)).astype(np.float32))
    return weights, embeddings


def test_a_head_is_verified_with_real_embeddings_and_serves_probabilities(
    trained: Trained, served: Serving, model: str, head: tuple[Path, Path]
) -> None:
    weights, embeddings = head
    options = {"family": "head", "activation": "sigmoid", "hidden_activation": "relu", "embeddings": str(embeddings)}
    result = bring(trained, weights, None, **options)
    assert bring(trained, weights, None, **options) == result
    assert result.snapshot_id is None
    foreign = imported(trained, result)
    foreign.export()
    assert all(verdict.passed for verdict in foreign.verify().verdicts)
    published = foreign.publish(model)
    foreign.deploy(published.version, model)
    meta = served.get(f"/get_meta/{model}").json()
    assert (meta["features"], meta["output"], meta["labels"]) == (16, "probabilities", ["boot", "shoe"])
    with closing(ServedModel(model)) as ready:
        answer, _ = ready.ask(np.load(embeddings)[:4])
    assert ((answer > 0) & (answer < 1)).all()


def test_embeddings_that_the_head_does_not_take_are_refused(trained: Trained, head: tuple[Path, Path]) -> None:
    weights, embeddings = head
    options = {"family": "head", "hidden_activation": "relu", "embeddings": str(embeddings)}
    np.save(embeddings, np.zeros((3, 17), np.float32))
    with pytest.raises(DataValidationError, match=r"holds float32 \[3, 17\], the head takes float32 \[n, 16\]"):
        bring(trained, weights, None, **options)
    embeddings.write_bytes(b"no numbers")
    with pytest.raises(DataValidationError, match=r"is no \.npy file of numbers"):
        bring(trained, weights, None, **options)
    assert not list(trained.bottle.keys("models/footwear"))


def test_weights_are_found_in_a_bucket(trained: Trained, s3_bottle: str, tmp_path: Path, pictures: Path) -> None:
    weights, _ = weights_of("torchscript", tmp_path)
    open_bottle(s3_bottle).put("incoming/best.pt", weights)
    trained.context = Context(tmp_path / "job", None)
    result = bring(trained, f"{s3_bottle}/incoming/best.pt", pictures)
    assert open_bottle(s3_bottle).exists(Experiment(result.experiment).torchscript)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"labels": "boot,shoe,sandal"}, DataValidationError, r"gives \[N, 2\], but 3 classes are named"),
        ({"labels": " , "}, ConfigurationError, "give labels"),
        ({"family": "vit", "architecture": "test_vit"}, ValidationError, "family vit has none"),
        ({"family": "head"}, ValidationError, "family head takes embeddings: give embeddings"),
        ({"embeddings": "some.npy"}, ValidationError, "give pictures or snapshot_id"),
        ({"pictures": None}, ValidationError, "give pictures or snapshot_id"),
        ({"mean": (0.5,)}, ConfigurationError, "have 1 and 3 values for 3 channels"),
        ({"weights": "models/none.pt"}, DataValidationError, "models/none.pt is not in the bottle"),
        ({"weights": "/no/such/file.pt"}, DataValidationError, "is not a file on this worker"),
        ({"group": "../up"}, ValidationError, "should match pattern"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_its_reason(
    trained: Trained,
    tmp_path: Path,
    pictures: Path,
    options: dict[str, Any],
    error: type[JobError | ValidationError],
    says: str,
) -> None:
    weights, _ = weights_of("torchscript", tmp_path)
    options = {"folder": pictures, "weights": weights, **options}
    if "pictures" in options:
        options["folder"] = options.pop("pictures")
    with pytest.raises(error, match=says):
        bring(trained, **options)
    assert not list(trained.bottle.keys("models/footwear"))


def test_pictures_that_cannot_be_decoded_are_left_out_and_none_is_an_error(
    trained: Trained,
    tmp_path: Path,
    pictures: Path,
) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "empty.png").touch()
    weights, _ = weights_of("torchscript", tmp_path)
    result = bring(trained, weights, folder)
    summary = trained.bottle.read(f"snapshots/footwear/{result.snapshot_id}/summary.json")
    assert b'"corrupt": 2' in summary
    (tmp_path / "none").mkdir()
    with pytest.raises(DataValidationError, match="has no picture that can be decoded"):
        bring(trained, weights, tmp_path / "none")


def test_a_model_whose_outputs_depend_on_the_batch_is_refused_on_the_way(
    trained: Trained,
    tmp_path: Path,
    pictures: Path,
) -> None:
    class Centered(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x - x.mean(0, keepdim=True)).mean((2, 3))[:, :2]

    torch.jit.trace(Centered(), torch.zeros(2, 3, 32, 32)).save(str(tmp_path / "centered.pt"))
    foreign = imported(trained, bring(trained, tmp_path / "centered.pt", pictures))
    with pytest.raises(DataValidationError, match="torchscript: on noise, at batch 1, the largest difference"):
        foreign.export()


def gelu_head(folder: Path) -> tuple[Path, Path, Path]:
    """Weights of a head with GELU, embeddings, and what its own code gives for them."""
    torch.manual_seed(8)
    module = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Dropout(), nn.Linear(32, 2)).eval()
    weights, embeddings, expected = folder / "head.pth", folder / "embeddings.npy", folder / "expected.npy"
    torch.save(module.state_dict(), weights)
    values = torch.randn(40, 16)
    np.save(embeddings, values.numpy())
    np.save(expected, module(values).detach().numpy())
    return weights, embeddings, expected


@pytest.mark.parametrize("hidden", ["gelu", "relu"])
def test_a_head_is_held_to_what_the_users_own_code_gives(trained: Trained, tmp_path: Path, hidden: str) -> None:
    """A graph agrees with any reading of the weights; only outputs from elsewhere tell the right one."""
    weights, embeddings, expected = gelu_head(tmp_path)
    options = {"family": "head", "hidden_activation": hidden, "embeddings": str(embeddings)}
    reading = imported(trained, bring(trained, weights, None, **options))
    reading.export()
    found = reading.verify()
    assert all(verdict.passed for verdict in found.verdicts), "both readings agree with themselves"
    assert found.verified_against == "consistent with our reading of the weights"
    assert _meta(reading)["verified_against"] == found.verified_against
    proven = imported(trained, bring(trained, weights, None, expected=str(expected), **options))
    proven.export()
    if hidden == "relu":
        with pytest.raises(DataValidationError, match=r"as expected.*the largest difference is"):
            proven.verify()
        return
    assert proven.verify().verified_against == "reference outputs that came with the weights"
    assert _meta(proven)["verified_against"] == "reference outputs that came with the weights"


def _meta(trained: Trained) -> dict[str, Any]:
    package = trained.package("proven")
    with zipfile.ZipFile(trained.bottle.local(package.archive)) as archive:
        found: dict[str, Any] = json.loads(archive.read("meta.json"))
    return found


@pytest.mark.parametrize("with_inputs", [False, True])
def test_a_model_of_pictures_is_held_to_what_the_users_own_code_gives(
    trained: Trained, tmp_path: Path, pictures: Path, with_inputs: bool
) -> None:
    weights, _ = weights_of("torchscript", tmp_path)
    module = torch.jit.load(str(weights))
    files = sorted(file for file in pictures.rglob("*") if file.is_file())
    how = Preprocessing(height=32, width=32, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    inputs = np.stack([prepare(file, how) for file in files])
    outputs = module(torch.from_numpy(inputs)).detach().numpy()
    for name, values in (("right", outputs), ("wrong", outputs[:, ::-1])):
        path = tmp_path / f"{name}.npz"
        np.savez(path, outputs=values, **({"inputs": inputs} if with_inputs else {}))
        foreign = imported(trained, bring(trained, weights, pictures, expected=str(path)))
        foreign.export()
        if name == "wrong":
            with pytest.raises(DataValidationError, match="as expected"):
                foreign.verify()
        else:
            assert "expected_top1_agreement" in {verdict.name for verdict in foreign.verify().verdicts}


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"outputs": np.zeros((3, 2))}, "has outputs of 3 inputs, and 40 came with the weights"),
        ({"values": np.zeros((40, 2))}, "has the arrays values; it needs outputs"),
        ({"outputs": np.zeros(40)}, r"holds float64 \[40\], not numbers \[n, ...\]"),
        ({"outputs": np.zeros((4, 2)), "inputs": np.zeros((5, 16))}, "has 5 inputs and 4 outputs"),
    ],
)
def test_reference_outputs_of_something_else_are_refused(
    trained: Trained, tmp_path: Path, arrays: dict[str, Any], says: str
) -> None:
    weights, embeddings, _ = gelu_head(tmp_path)
    np.savez(tmp_path / "expected.npz", **arrays)
    options = {"family": "head", "hidden_activation": "gelu", "embeddings": str(embeddings)}
    with pytest.raises(DataValidationError, match=says):
        bring(trained, weights, None, expected=str(tmp_path / "expected.npz"), **options)
