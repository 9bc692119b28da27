"""Verification catches every way in which a graph is known to come out wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from conversion_jobs.onnx.export import export
from conversion_jobs.verification.checks import Close, Cosine, Finite, Top1Agreement
from conversion_jobs.verification.golden_inputs import choose
from conversion_jobs.verify_onnx import fp16_risks
from jobkit.errors import DataValidationError
from jobkit.experiment import Experiment, read_spec
from jobkit.snapshot import read_snapshot
from tests.conversion_jobs.conftest import Trained
from tests.support.trained import make_model, write_experiment


def verification(trained: Trained) -> dict:
    return json.loads(trained.bottle.read(Experiment(trained.experiment).verification))


def test_a_good_graph_passes_and_leaves_a_reference_of_real_pictures(trained: Trained) -> None:
    trained.export()
    result = trained.verify()
    assert {verdict.name for verdict in result.verdicts} == {"finite", "close", "cosine", "top1_agreement"}
    assert all(verdict.passed for verdict in result.verdicts)
    reference = np.load(trained.bottle.local(result.reference))
    assert reference["inputs"].shape == (8, 3, 32, 32)
    assert reference["pictures"][0].startswith("drawn/")
    session = onnxruntime.InferenceSession(str(trained.bottle.local(Experiment(trained.experiment).onnx)))
    np.testing.assert_allclose(session.run(None, {"input": reference["inputs"]})[0], reference["outputs"], atol=1e-4)
    found = verification(trained)
    assert found["batch_sizes"] == [1, 2, 8]
    assert all(entry["median"] <= entry["p90"] <= entry["p99"] for entry in found["latency_ms"])


def replace_graph(trained: Trained, change: Callable[[nn.Module], nn.Module]) -> None:
    """Export a changed model over the good graph, as a bug in the export would."""
    experiment = Experiment(trained.experiment)
    spec = read_spec(trained.bottle, experiment)
    path = trained.bottle.path(experiment.onnx)
    path.parent.mkdir(exist_ok=True)
    model = change(make_model(spec, 3))
    export(model, spec, path, 17, {"experiment": experiment.folder})


class Around(nn.Module):
    """A model with something done to its input or its output."""

    def __init__(self, model: nn.Module, before: Callable = torch.clone, after: Callable = torch.clone) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.after(self.model(self.before(pictures)))


def other_weights(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.backbone.layer2[0].conv1.weight.mul_(-1)
    return model


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda model: Around(model, before=lambda x: x.flip(1)), "they differ from backbone.conv1.0 on"),
        (lambda model: Around(model, before=lambda x: x * 0.5 + 0.1), "they differ from backbone.conv1.0 on"),
        (lambda model: Around(model, after=lambda y: y.flip(1)), "the difference is in or after the last"),
        (other_weights, r"agree up to the module backbone\.layer1\S+ and differ from backbone\.layer2\.0\.conv1"),
        (lambda model: Around(model, after=lambda y: y / (y - y)), "NaN or infinity in the outputs"),
    ],
    ids=["swapped channels", "wrong normalization", "flipped outputs", "one layer's weights", "not finite"],
)
def test_a_graph_that_computes_something_else_is_refused_by_picture_and_place(
    trained: Trained, change: Callable[[nn.Module], nn.Module], says: str
) -> None:
    replace_graph(trained, change)
    with pytest.raises(DataValidationError, match=says) as caught:
        trained.verify()
    assert "worst: drawn/" in str(caught.value)
    assert verification(trained)["passed"] is False
    assert not trained.bottle.exists(Experiment(trained.experiment).reference)


def test_a_model_that_was_exported_in_training_mode_is_refused(trained: Trained) -> None:
    """Its batch norms use the batch's own statistics, so that an answer depends on its neighbors."""
    experiment = Experiment(trained.experiment)
    spec = read_spec(trained.bottle, experiment)
    path = trained.bottle.path(experiment.onnx)
    path.parent.mkdir(exist_ok=True)
    torch.onnx.export(
        make_model(spec, 3).train(), (torch.randn(2, 3, 32, 32),), str(path), input_names=["input"],
        output_names=["logits"], dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}}, dynamo=False,
        training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False,
    )  # fmt: skip
    with pytest.raises(DataValidationError, match="is not the model that was trained"):
        trained.verify()


def test_a_graph_from_another_checkpoint_is_refused(trained: Trained) -> None:
    trained.export()
    write_experiment(trained.bottle, trained.experiment, trained.snapshot_id, seed=4)
    with pytest.raises(DataValidationError, match="is not the model that was trained"):
        trained.verify()


def test_a_graph_from_another_experiment_is_refused_by_its_metadata(trained: Trained) -> None:
    trained.export()
    other = f"{trained.experiment}_other"
    write_experiment(trained.bottle, other, trained.snapshot_id)
    trained.bottle.put(Experiment(other).onnx, trained.bottle.local(Experiment(trained.experiment).onnx))
    trained.experiment = other
    with pytest.raises(
        DataValidationError, match="was exported from something else: it has the experiment models/digits/v__0"
    ):
        trained.verify()


def test_a_graph_with_a_baked_in_batch_is_refused(trained: Trained) -> None:
    trained.export()
    path = trained.bottle.path(Experiment(trained.experiment).onnx)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, path)
    with pytest.raises(DataValidationError, match="fails on a batch of 1"):
        trained.verify()


def test_nodes_that_would_overflow_half_precision_are_named(trained: Trained) -> None:
    def loud(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            model.backbone.layer1[0].conv1.weight.mul_(1e6)
        return model

    replace_graph(trained, loud)
    path = trained.bottle.local(Experiment(trained.experiment).onnx)
    risks = fp16_risks(onnx.load(path), np.ones((2, 3, 32, 32), np.float32))
    assert any("/layer1/layer1.0/conv1/Conv (Conv) reaches" in str(risk) and risk.overflows for risk in risks)
    replace_graph(trained, lambda model: model)
    assert fp16_risks(onnx.load(path), np.ones((2, 3, 32, 32), np.float32)) == []


def test_pictures_are_taken_from_all_classes_in_turn_and_the_same_ones_each_time(trained: Trained) -> None:
    golden = read_snapshot(trained.bottle, "digits", trained.snapshot_id).split("golden")
    chosen = choose(golden, 6)
    assert [sample.label for sample in chosen] == ["circle", "cross", "square"] * 2
    assert choose(list(reversed(golden)), 6) == chosen
    with pytest.raises(DataValidationError, match="no golden pictures"):
        choose([], 6)


def test_a_file_that_is_no_torchscript_is_refused(verified: Trained) -> None:
    verified.bottle.write(Experiment(verified.experiment).torchscript, b"no script")
    with pytest.raises(DataValidationError, match="not a TorchScript model"):
        verified.verify()


PICTURES = ["a.png", "b.png"]
SOURCE = np.array([[1.0, 2.0], [3.0, -1.0]], np.float32)


@pytest.mark.parametrize(
    ("check", "converted", "passed", "worst"),
    [
        (Finite(), SOURCE, True, None),
        (Finite(), np.array([[1, 2], [np.inf, 1]], np.float32), False, "b.png"),
        (Close(1e-4, 1e-3), SOURCE + np.float32(1e-4), True, "a.png"),
        (Close(1e-4, 1e-3), SOURCE + np.array([[0, 0.1], [0, 0]], np.float32), False, "a.png"),
        (Close(1e-4, 1e-3), SOURCE * np.nan, False, "a.png"),
        (Cosine(0.999), SOURCE * 2, True, None),
        (Cosine(0.999), SOURCE[:, ::-1], False, "b.png"),
        (Top1Agreement(1.0), SOURCE * 3, True, None),
        (Top1Agreement(0.6), np.array([[1.0, 2.0], [-3.0, 1.0]], np.float32), False, "b.png"),
        (Top1Agreement(0.5), np.array([[1.0, 2.0], [-3.0, 1.0]], np.float32), True, "b.png"),
    ],
)
def test_a_threshold_judges_and_names_the_worst_picture(
    check: Finite | Close | Cosine | Top1Agreement, converted: np.ndarray, passed: bool, worst: str | None
) -> None:
    verdict = check.judge(SOURCE, converted, PICTURES)
    assert verdict.passed is passed
    assert worst is None or verdict.worst_picture == worst


def test_the_working_folder_of_a_refused_graph_holds_no_leftovers(trained: Trained, tmp_path: Path) -> None:
    replace_graph(trained, other_weights)
    with pytest.raises(DataValidationError):
        trained.verify()
    assert not list(Path(str(trained.bottle)).rglob(".*"))
