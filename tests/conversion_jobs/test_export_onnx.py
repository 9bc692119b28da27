"""Export: one file, a free batch, names, metadata; the same weights give the same bytes; bad weights are refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from conversion_jobs.onnx.export import export_module
from conversion_jobs.onnx.graph import interface, read_graph
from conversion_jobs.triton.model_config import model_config
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment
from tests.conversion_jobs.conftest import Trained
from tests.support.trained import LABELS


def test_the_graph_has_the_interface_that_triton_and_clients_rely_on(trained: Trained) -> None:
    result = trained.export(opset=18)
    found = interface(read_graph(trained.bottle.local(result.onnx)))
    assert [(t.name, t.dtype, t.shape) for t in found.inputs] == [("input", "float32", (None, 3, 32, 32))]
    assert [(t.name, t.dtype, t.shape) for t in found.outputs] == [("logits", "float32", (None, 3))]
    assert found.opset == 18
    assert json.loads(found.metadata["labels"]) == LABELS
    assert found.metadata["snapshot_id"] == trained.snapshot_id
    assert found.metadata["experiment"] == trained.experiment
    assert json.loads(found.metadata["preprocessing"])["mean"] == [0.485, 0.456, 0.406]


def test_the_same_weights_give_the_same_bytes(trained: Trained) -> None:
    assert trained.export().sha256 == trained.export().sha256


def test_a_lightning_checkpoint_exports_like_its_plain_state_dict(trained: Trained) -> None:
    plain = trained.export().sha256
    path = trained.bottle.path(Experiment(trained.experiment).best_checkpoint)
    state = torch.load(path)
    torch.save({"epoch": 3, "state_dict": {f"model._orig_mod.{key}": value for key, value in state.items()}}, path)
    assert trained.export().sha256 == plain


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("/tmp/nightshift-was-here"),))


def _write(path: Path, content: object) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, Malicious):
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"these are no weights", "not a checkpoint of weights alone"),
        (b"", "not a checkpoint of weights alone"),
        (Malicious(), "not a checkpoint of weights alone"),
        ({"epoch": 1}, "holds no state_dict"),
        ({"fc.weight": torch.zeros(5, 5)}, r"does not fit the model: backbone.*and \d+ more"),
    ],
    ids=["text", "empty", "code", "no weights", "other weights"],
)
def test_weights_that_are_not_weights_are_refused(trained: Trained, content: object, says: str) -> None:
    _write(trained.bottle.path(Experiment(trained.experiment).best_checkpoint), content)
    with pytest.raises(DataValidationError, match=says):
        trained.export()
    assert not trained.bottle.exists(Experiment(trained.experiment).onnx)
    assert not Path("/tmp/nightshift-was-here").exists()


@pytest.mark.parametrize("folder", ["digits/v__0", "models/digits", "models/digits/a/b", "models/../x", "/models/a/b"])
def test_a_folder_that_is_no_experiment_is_a_configuration_error(trained: Trained, folder: str) -> None:
    trained.experiment = folder
    with pytest.raises(ConfigurationError, match=r"experiment|not valid"):
        trained.export()


def test_graphs_that_are_damaged_are_refused_by_what_is_wrong(verified: Trained, tmp_path: Path) -> None:
    path = verified.bottle.local(Experiment(verified.experiment).onnx)
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataValidationError, match=r"cut.onnx .*(cut off|breaks the rules)"):
        read_graph(cut)
    apart = tmp_path / "apart.onnx"
    onnx.save(onnx.load(path), apart, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    tomorrow = onnx.load(path)
    next(entry for entry in tomorrow.opset_import if not entry.domain).version = 999
    newer = tmp_path / "newer.onnx"
    newer.write_bytes(tomorrow.SerializeToString())
    with pytest.raises(DataValidationError, match=r"newer.onnx has opset 999, \d+ is the newest known"):
        read_graph(newer)
    with pytest.raises(
        DataValidationError, match=r"apart.onnx keeps the weights of .* in 'weights.bin', which is missing"
    ):
        read_graph(apart)


@pytest.mark.slow
def test_the_job_runs_from_its_command_line(trained: Trained, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "conversion_jobs.export_onnx", "--experiment", trained.experiment],
        env={"NIGHTSHIFT_BOTTLE": str(trained.bottle), "NIGHTSHIFT_JOB_DIR": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "result.json").read_text())["result"]
    onnxruntime.InferenceSession(str(trained.bottle.local(result["onnx"])))


def test_free_height_and_width_stay_free_in_the_graph_and_in_triton_and_are_verified(trained: Trained) -> None:
    trained.export(dynamic_size=True)
    verdicts = {verdict.name: verdict.passed for verdict in trained.verify().verdicts}
    assert verdicts.items() >= {"close": True, "other_size_close": True, "other_size_top1_agreement": True}.items()
    found = interface(read_graph(trained.bottle.local(Experiment(trained.experiment).onnx)))
    assert found.inputs[0].shape == (None, 3, None, None)
    config = model_config(found, "free")
    assert (list(config.input[0].dims), list(config.output[0].dims)) == ([3, -1, -1], [len(LABELS)])


def test_a_model_that_is_built_for_one_size_keeps_it(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2)).eval()
    with pytest.raises(ConfigurationError, match="takes no larger ones: leave --dynamic_size out"):
        export_module(model, (3, 8, 8), tmp_path / "m.onnx", output="logits", opset=17, metadata={}, dynamic=True)
