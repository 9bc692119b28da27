"""Ultralytics' weights are read without running what strangers put into them, and give what Ultralytics gives."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from conversion_jobs import import_weights
from jobkit.bottle import FolderBottle
from jobkit.detection.torchscript import preprocessing
from jobkit.detection.ultralytics_weights import load_detector
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment, read_spec
from jobkit.job import Context
from jobkit.model_spec import DetectorSpec, prepare
from tests.support import detectors


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "detectors"
    detectors.write(folder)
    return folder


class Command:
    """What a pickle with code in it does when it is read."""

    def __init__(self, line: str) -> None:
        self.line = line

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.line,)


def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_does_not_run(made: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(made / "detect.pt", weights_only=False)
    torch.save({**checkpoint, "train_args": Command(f"touch {tmp_path}/ran")}, tmp_path / "bad.pt")
    with pytest.raises(DataValidationError, match=r"could run code: .*system"):
        load_detector(tmp_path / "bad.pt", (128, 128))
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Command(f"touch {tmp_path}/ran")))
    with pytest.raises(DataValidationError, match=r"is not a file of weights|could run code"):
        load_detector(tmp_path / "plain.pt", (128, 128))
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "bad.pt", weights_only=False)
    assert (tmp_path / "ran").exists(), "the test's own code does run where it may"


@pytest.mark.parametrize("function", ["ultralytics.nn.tasks.torch_safe_load", "ultralytics.nn.modules.block.torch"])
def test_of_the_packages_that_are_known_only_modules_are_read(tmp_path: Path, function: str) -> None:
    module, _, name = function.rpartition(".")

    class Call:
        def __reduce__(self) -> Any:
            import importlib

            return getattr(importlib.import_module(module), name), ("x.pt",)

    if name == "torch":
        pytest.importorskip(module)
        from jobkit.detection.ultralytics_weights import _module_class

        assert _module_class(function) is None
        return
    torch.save({"model": Call()}, tmp_path / "bad.pt")
    with pytest.raises(DataValidationError, match="could run code"):
        load_detector(tmp_path / "bad.pt", (128, 128))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"a page that asks for a login", "not a file of weights"), (b"", "not a file of weights")],
)
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "best.pt").write_bytes(content)
    with pytest.raises(DataValidationError, match=reason):
        load_detector(tmp_path / "best.pt", (128, 128))


def test_a_truncated_checkpoint_and_a_plain_state_dict_are_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "half.pt").write_bytes((made / "detect.pt").read_bytes()[:100_000])
    with pytest.raises(DataValidationError, match=r"half\.pt is not a file of weights"):
        load_detector(tmp_path / "half.pt", (128, 128))
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "state.pt")
    with pytest.raises(DataValidationError, match="no Ultralytics checkpoint"):
        load_detector(tmp_path / "state.pt", (128, 128))


@pytest.mark.parametrize(
    ("kind", "architecture", "says"),
    [
        ("PoseModel", "yolov8n-pose.yaml", r"is a pose model \(it ends in Pose\)"),
        ("OBBModel", "yolov8n-obb.yaml", r"is a detector of rotated boxes \(it ends in OBB\)"),
        ("ClassificationModel", "yolov8n-cls.yaml", r"is a classifier \(it ends in Classify\)"),
        ("RTDETRDetectionModel", "rtdetr-l.yaml", r"is an RT-DETR \(it ends in RTDETRDecoder\)"),
    ],
)
def test_other_tasks_are_refused_by_name_with_what_to_do(
    tmp_path: Path, kind: str, architecture: str, says: str
) -> None:
    from ultralytics.nn import tasks

    torch.save({"model": getattr(tasks, kind)(architecture, nc=1, verbose=False), "ema": None}, tmp_path / "other.pt")
    with pytest.raises(ConfigurationError, match=says + r".*format=onnx dynamic=True.*--family onnx"):
        load_detector(tmp_path / "other.pt", (128, 128))


def test_sides_that_the_model_does_not_take_are_refused(made: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--img_size 128 100: the model takes multiples of 32 pixels"):
        load_detector(made / "detect.pt", (128, 100))


def test_the_detector_gives_what_ultralytics_gives(made: Path) -> None:
    detector = load_detector(made / "detect.pt", (128, 160))
    assert (detector.task, detector.labels) == ("detect", detectors.LABELS)
    inputs = np.stack([prepare(file, preprocessing((128, 160))) for file in sorted((made / "pictures").iterdir())])
    theirs = torch.load(made / "detect.pt", weights_only=False)["model"].float().eval()
    with torch.inference_mode():
        ours, raw = (model(torch.from_numpy(inputs)) for model in (detector.module, theirs))
    assert torch.allclose(ours[:, 4:], raw[0][:, 4:], atol=1e-3)
    assert torch.allclose(ours[:, :4], raw[0][:, :4], atol=0.1), "pixels"


def test_pictures_are_letterboxed_as_ultralytics_does(made: Path) -> None:
    from ultralytics.data.augment import LetterBox

    file = sorted((made / "pictures").iterdir())[0]
    picture = cv2.imread(str(file))
    theirs = LetterBox((128, 160), auto=False)(image=picture)[:, :, ::-1].transpose(2, 0, 1) / 255
    ours = prepare(file, preprocessing((128, 160)))
    assert np.abs(ours - theirs).max() < 1e-6


def test_an_import_leaves_an_experiment_that_needs_no_ultralytics(made: Path, tmp_path: Path) -> None:
    context = Context(tmp_path / "job", None)
    context.bottle = FolderBottle(tmp_path / "bottle")
    given: dict[str, Any] = {
        "family": "ultralytics", "weights": str(made / "segment.pt"), "group": "footwear", "img_size": (128, 128),
        "pictures": made / "pictures", "nms": True, "confidence_threshold": 0.4,
    }  # fmt: skip
    result = import_weights.run(import_weights.Arguments(**given), context)
    spec = read_spec(context.bottle, Experiment(result.experiment))
    assert isinstance(spec, DetectorSpec)
    assert (spec.task, spec.labels, spec.suppression.confidence_threshold) == ("segment", detectors.LABELS, 0.4)
    script = torch.jit.load(context.bottle.local(Experiment(result.experiment).torchscript))
    assert [list(output.shape) for output in script(torch.zeros(3, 3, 128, 128))] == [
        [3, 7, 336], [3, 32, 336], [3, 32, 32, 32]
    ]  # fmt: skip
    with pytest.raises(DataValidationError, match="has 3 classes, but 2 are named"):
        import_weights.run(import_weights.Arguments(**given, labels="boot,shoe"), context)
