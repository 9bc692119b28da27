"""Weights as people have them: timm's own checkpoints, safetensors, half precision, class names inside archives."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from conversion_jobs.families.archives import opened_weights
from conversion_jobs.families.probing import probe
from conversion_jobs.families.sources import load_source
from jobkit.classifier import Classifier
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment, read_spec
from jobkit.model_spec import ModelSpec
from nightshift_common.options.weights import SourceOptions
from tests.conversion_jobs.conftest import Place
from tests.support.volumes import SHAPE, VolumeEncoder


def test_timms_own_classifier_in_safetensors_and_half_precision_is_served_by_its_classes(
    place: Place, tmp_path: Path, pictures: Path
) -> None:
    torch.manual_seed(4)
    model = timm.create_model("test_resnet", num_classes=3, in_chans=1).eval().half()
    save_file(model.state_dict(), tmp_path / "best.safetensors")
    options: dict[str, Any] = {"family": "classifier", "architecture": "test_resnet", "channels": 1}
    found = place.bring(tmp_path / "best.safetensors", pictures=pictures, labels="a,b,c", img_size=(32, 32), **options)
    assert found.notes == ["weights of float16 became float32 for the graph"]
    spec = read_spec(place.bottle, Experiment(place.experiment))
    assert isinstance(spec, ModelSpec)
    assert spec.preprocessing.mean == pytest.approx((0.449,)), "gray without mean and std: the mean over the colors"
    assert set(place.verdicts().values()) == {True}
    inputs = torch.randn(4, 1, 32, 32)
    answered = onnxruntime.InferenceSession(str(place.graph)).run(None, {"input": inputs.numpy()})[0]
    np.testing.assert_allclose(answered, model.float()(inputs).detach().numpy(), atol=1e-4)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "test_convnext", "test_byobnet"])
def test_a_whole_timm_model_gives_what_timm_gives(tmp_path: Path, architecture: str) -> None:
    torch.manual_seed(5)
    model = timm.create_model(architecture, num_classes=4).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "best.pth")
    side = model.pretrained_cfg["input_size"][1]
    options = SourceOptions(family="classifier", architecture=architecture, img_size=(side, side))
    inputs = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        found = load_source(tmp_path / "best.pth", options).module(inputs)
        torch.testing.assert_close(found, model(inputs))


def test_a_checkpoint_that_is_neither_says_what_was_looked_for(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    options = SourceOptions(family="classifier", architecture="test_vit")
    with pytest.raises(
        DataValidationError, match=r"no 'head\.weight', the last layer of test_vit, and is no {backbone"
    ):
        load_source(tmp_path / "other.pth", options)


def test_a_timm_model_takes_other_channels_by_its_input_shape(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=2, in_chans=4, img_size=(64, 32))
    torch.save(model.state_dict(), tmp_path / "best.pth")
    options = SourceOptions(family="classifier", architecture="test_vit", input_shape=(4, 64, 32))
    assert probe(load_source(tmp_path / "best.pth", options)).outputs == ((2,),)
    with pytest.raises(ConfigurationError, match=r"takes inputs of \[channels, height, width\], not of \[4, 64\]"):
        load_source(tmp_path / "best.pth", options.model_copy(update={"input_shape": (4, 64)}))


SAVED: dict[str, tuple[nn.Module, dict[str, Any]]] = {
    "classifier": (Classifier("test_resnet", 2), {"architecture": "test_resnet", "img_size": (32, 32)}),
    "vit": (timm.create_model("test_vit", num_classes=0), {"architecture": "test_vit", "img_size": (160, 160)}),
    "head": (nn.Sequential(nn.Linear(6, 4), nn.LeakyReLU(), nn.Linear(4, 2)), {"hidden_activation": "leaky_relu"}),
    "factory": (VolumeEncoder(), {"factory": "tests.support.volumes:volume_encoder", "input_shape": SHAPE}),
}


@pytest.mark.parametrize("family", list(SAVED))
def test_each_family_of_a_state_dict_reads_safetensors_whatever_the_file_is_called(tmp_path: Path, family: str) -> None:
    module, more = SAVED[family]
    save_file(module.state_dict(), tmp_path / "weights.ckpt")  # as an experiment keeps it
    source = load_source(tmp_path / "weights.ckpt", SourceOptions(family=family, **more))  # type: ignore[arg-type]
    inputs = torch.randn(2, *source.shape)
    wanted, found = module.eval()(inputs), source.module(inputs)
    torch.testing.assert_close(found, wanted)


SCRIPTED = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))


@pytest.mark.parametrize(
    "content",
    [
        '{"0": "boot", "1": "shoe"}', "{1: 'shoe', 0: 'boot'}", '["boot", "shoe"]', "boot\nshoe\n", "0 boot\n1 shoe",
        "0: boot\r\n1: shoe\r\n", "\ufeff1,shoe\n0,boot",
    ],
)  # fmt: skip
def test_class_names_inside_a_torchscript_archive_are_read_in_every_form(tmp_path: Path, content: str) -> None:
    script = torch.jit.script(SCRIPTED)
    torch.jit.save(script, str(tmp_path / "best.pt"), _extra_files={"num2label.txt": content})
    with opened_weights(tmp_path / "best.pt") as found:
        assert found.labels == ["boot", "shoe"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"0": "boot", "2": "shoe"}', r"has the numbers \[0, 2\]: they go from 0 without gaps"),
        (b"{open('x')}", "is neither JSON nor what Python prints"),
        (b"0 boot\n0 shoe", "is there twice"),
        (b"\xff\xfe\x00", "is no text in UTF-8"),
    ],
)
def test_class_names_that_cannot_be_read_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    with zipfile.ZipFile(tmp_path / "best.zip", "w") as archive:
        archive.writestr("best.pth", b"weights")
        archive.writestr("num2label.txt", content)
    with pytest.raises(DataValidationError, match=says), opened_weights(tmp_path / "best.zip"):
        pass


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["one.pt", "two.onnx"], r"should hold one file of weights .*; it holds one\.pt, two\.onnx"),
        (["readme.md"], "it holds none"),
        (["../best.pt"], "leads out of the folder"),
    ],
)
def test_a_zip_without_one_file_of_weights_is_refused(tmp_path: Path, names: list[str], says: str) -> None:
    with zipfile.ZipFile(tmp_path / "best.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    with pytest.raises(DataValidationError, match=says), opened_weights(tmp_path / "best.zip"):
        pass


def test_class_names_of_an_archive_are_the_models_unless_the_options_say_otherwise(
    place: Place, tmp_path: Path, pictures: Path
) -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    names = json.dumps({"0": "boot", "1": "shoe"})
    torch.jit.save(torch.jit.script(module), str(tmp_path / "best.pt"), _extra_files={"num2label.txt": names})
    torch.jit.save(torch.jit.script(module), str(tmp_path / "nameless.pt"))
    options: dict[str, Any] = {"family": "torchscript", "pictures": pictures, "img_size": (32, 32)}
    with pytest.raises(ConfigurationError, match=r"give labels, .*nameless\.pt has no num2label\.txt"):
        place.bring(tmp_path / "nameless.pt", **options)
    with pytest.raises(ConfigurationError, match=r"--labels are shoe, boot, but num2label\.txt says boot, shoe"):
        place.bring(tmp_path / "best.pt", labels="shoe,boot", **options)
    place.bring(tmp_path / "best.pt", **options)
    assert read_spec(place.bottle, Experiment(place.experiment)).labels == ["boot", "shoe"]
