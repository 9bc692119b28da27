"""Graphs that average over mirror images and are calibrated, and inputs with another border: exported and verified."""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from conversion_jobs import import_weights
from conversion_jobs.onnx.export import export
from conversion_jobs.onnx.graph import compact_json
from jobkit.classifier import load_classifier, served
from jobkit.errors import DataValidationError
from jobkit.experiment import Experiment
from jobkit.model_spec import Calibration, ModelSpec
from jobkit.snapshot import read_snapshot
from nightshift_common.options.weights import Border
from tests.conversion_jobs.conftest import Trained
from tests.support.trained import EXPERIMENT, GROUP, SIDE

PATHS = Experiment(EXPERIMENT)
CALIBRATION = Calibration(temperature=1.7, pictures=200, nll_before=0.9, nll_after=0.8, ece_before=0.1, ece_after=0.02)


def served_as(trained: Trained, **changes: Any) -> ModelSpec:
    """Hand the trained model over as `changes` of its description say, as the end of a training does."""
    spec = ModelSpec.model_validate_json(trained.bottle.read(PATHS.spec)).model_copy(update=changes)
    trained.bottle.write(PATHS.spec, spec.model_dump_json())
    model = served(load_classifier(trained.bottle.path(PATHS.best_checkpoint), spec), spec)
    example = torch.zeros(2, 3, SIDE, SIDE)
    torch.jit.trace(model, example, check_trace=False).save(str(trained.bottle.path(PATHS.torchscript)))
    return spec


def test_the_exported_graph_gives_the_calibrated_average_for_any_batch(trained: Trained) -> None:
    plain_size = trained.bottle.path(trained.export().onnx).stat().st_size
    spec = served_as(trained, flip_tta="horizontal", calibration=CALIBRATION)
    path = trained.bottle.path(trained.export().onnx)
    assert path.stat().st_size < 1.1 * plain_size, "the weights are there once"
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert metadata["flip_tta"] == '"horizontal"' and json.loads(metadata["calibration"])["temperature"] == 1.7
    session = onnxruntime.InferenceSession(str(path))
    plain = load_classifier(trained.bottle.path(PATHS.best_checkpoint), spec)
    for count in (1, 2, 5):
        pictures = np.random.default_rng(count).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)
        with torch.inference_mode():
            one, other = (plain(torch.from_numpy(view.copy())).numpy() for view in (pictures, pictures[..., ::-1]))
        assert not np.allclose(one, other, atol=1e-2)
        (found,) = session.run(None, {"input": pictures})
        np.testing.assert_allclose(found, (one + other) / 2 / 1.7, atol=1e-4)
    assert all(verdict.passed for verdict in trained.verify().verdicts)


@pytest.mark.parametrize("forgotten", [{"flip_tta": "off"}, {"calibration": None}], ids=str)
def test_a_graph_that_forgets_either_is_refused(trained: Trained, forgotten: dict[str, Any]) -> None:
    spec = served_as(trained, flip_tta="both", calibration=CALIBRATION)
    wrong = spec.model_copy(update=forgotten)
    model = served(load_classifier(trained.bottle.path(PATHS.best_checkpoint), spec), wrong)
    trained.bottle.path(PATHS.onnx).parent.mkdir(exist_ok=True)
    export(model, spec, trained.bottle.path(PATHS.onnx), 17, {"experiment": PATHS.folder})
    with pytest.raises(DataValidationError, match="is not the model that was trained"):
        trained.verify()


@pytest.mark.parametrize(("border", "code"), [("wrap", cv2.BORDER_WRAP), ("replicate", cv2.BORDER_REPLICATE)])
def test_what_is_verified_and_kept_for_the_served_model_has_the_border(
    trained: Trained, border: Border, code: int
) -> None:
    """The drawn pictures are 40 x 40; the input is twice as wide as it is high."""
    before = ModelSpec.model_validate_json(trained.bottle.read(PATHS.spec)).preprocessing
    served_as(trained, preprocessing=before.model_copy(update={"border": border, "height": 40, "width": 80}))
    trained.export()
    reference = np.load(trained.bottle.path(trained.verify().reference))
    metadata = {entry.key: entry.value for entry in onnx.load(trained.bottle.path(PATHS.onnx)).metadata_props}
    assert json.loads(metadata["preprocessing"])["border"] == border
    snapshot = read_snapshot(trained.bottle, GROUP, trained.snapshot_id)
    golden = {sample.source: sample for sample in snapshot.split("golden")}
    for name, kept in zip(reference["pictures"], reference["inputs"], strict=True):
        sample = golden[str(name).split(" (")[0]]
        picture = cv2.imread(str(trained.bottle.path(sample.path)), cv2.IMREAD_COLOR_RGB)
        padded = cv2.copyMakeBorder(picture, 0, 0, 20, 20, code)
        expected = ((padded / 255 - before.mean) / before.std).transpose(2, 0, 1)
        np.testing.assert_allclose(kept, expected, atol=1e-5)


def test_a_graph_of_before_there_were_borders_is_of_the_same_experiment(trained: Trained) -> None:
    path = trained.bottle.path(trained.export().onnx)
    graph = onnx.load(path)
    entry = next(entry for entry in graph.metadata_props if entry.key == "preprocessing")
    entry.value = compact_json({key: value for key, value in json.loads(entry.value).items() if key != "border"})
    onnx.save(graph, path)
    assert all(verdict.passed for verdict in trained.verify().verdicts)
    how = ModelSpec.model_validate_json(trained.bottle.read(PATHS.spec)).preprocessing
    served_as(trained, preprocessing=how.model_copy(update={"border": "wrap"}))
    with pytest.raises(DataValidationError, match="exported from something else: it has the preprocessing"):
        trained.verify()


def test_imported_weights_are_told_their_border() -> None:
    arguments = import_weights.Arguments(
        family="torchscript", weights="a.pt", labels="a,b", pictures="/pictures", border="wrap"
    )
    assert import_weights.preprocessing(arguments, arguments.sizes).border == "wrap"
