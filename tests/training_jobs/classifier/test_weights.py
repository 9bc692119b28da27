"""Initial weights, fine-tuning, averages, compiled models: the right values under clean names."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from jobkit.bottle import FolderBottle
from jobkit.classifier import Classifier, load_classifier
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment
from jobkit.model_spec import ModelSpec
from tests.training_jobs.classifier.support import LABELS, config, examples, fit
from training_jobs.classifier.weights import average_of, build

PATHS = Experiment("models/colors/v__0")


def saved(folder: Path, classes: int = 3, channels: int = 3, name: str = "test_resnet") -> Classifier:
    torch.manual_seed(7)
    model = Classifier(name, classes, channels)
    torch.save(model.state_dict(), folder / "old.ckpt")
    return model


def tuned(folder: Path, classes: int = 3, **values: object) -> Classifier:
    torch.manual_seed(1)
    chosen = config(directories__models=str(folder), model__load_from="old.ckpt", **values)
    return build(chosen, classes, FolderBottle(folder / "bottle"))


def test_fine_tuning_starts_from_the_checkpoint(tmp_path: Path) -> None:
    old = saved(tmp_path)
    assert all(torch.equal(value, old.state_dict()[name]) for name, value in tuned(tmp_path).state_dict().items())


def test_another_number_of_classes_starts_with_a_new_last_layer(tmp_path: Path) -> None:
    old = saved(tmp_path, classes=7)
    new = tuned(tmp_path)
    assert new.fc.out_features == 3
    assert all(torch.equal(value, old.backbone.state_dict()[n]) for n, value in new.backbone.state_dict().items())


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3)])
def test_another_number_of_channels_sees_gray_pictures_as_before(tmp_path: Path, before: int, after: int) -> None:
    old = saved(tmp_path, channels=before).eval()
    new = tuned(tmp_path, model__in_channels=after).eval()
    gray = torch.rand(2, 1, 32, 32)
    assert torch.allclose(old(gray.expand(-1, before, -1, -1)), new(gray.expand(-1, after, -1, -1)), atol=1e-5)


def test_layers_that_do_not_fit_are_listed_and_refused_unless_told(tmp_path: Path) -> None:
    model = saved(tmp_path)
    state = model.state_dict()
    dropped = next(name for name in state if name.endswith("conv2.weight"))
    del state[dropped]
    state["backbone.extra.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "old.ckpt")
    with pytest.raises(ConfigurationError) as refused:
        tuned(tmp_path)
    text = str(refused.value)
    assert f"{dropped} (missing)" in text and "backbone.extra.weight (unknown)" in text and "tensors fit" in text
    accepted = tuned(tmp_path, model__load_mismatched=True).state_dict()
    assert torch.equal(accepted["fc.weight"], model.state_dict()["fc.weight"])


def test_a_checkpoint_of_which_nothing_fits_is_refused_even_where_layers_may_differ(tmp_path: Path) -> None:
    torch.manual_seed(2)
    other = Classifier("test_vit", 3).state_dict()
    torch.save({"state_dict": other}, tmp_path / "old.ckpt")
    with pytest.raises(ConfigurationError, match=r"no weight of the backbone fits .* random weights"):
        tuned(tmp_path, model__load_mismatched=True)
    # its last layer and a norm of the same size do not make it a start
    norms = {n: v for n, v in Classifier("test_resnet", 3).state_dict().items() if v.ndim <= 1}
    torch.save({"state_dict": {**other, **norms}}, tmp_path / "old.ckpt")
    with pytest.raises(ConfigurationError, match="no weight of the backbone fits"):
        tuned(tmp_path, model__load_mismatched=True)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def test_a_checkpoint_that_holds_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps({"state_dict": Bomb()}))
    with pytest.raises(DataValidationError, match=r"old\.ckpt"):
        tuned(tmp_path)
    torch.save({"state_dict": Bomb()}, tmp_path / "old.ckpt")
    with pytest.raises(DataValidationError, match=r"old\.ckpt"):
        tuned(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"load_from: there is no .*old\.ckpt"):
        tuned(tmp_path)


def test_an_experiment_in_the_bottle_can_be_tuned_further(tmp_path: Path) -> None:
    _, content, bottle = fit(tmp_path, config(), examples(tmp_path / "pictures"))
    again = build(config(model__load_from=PATHS.last_checkpoint), 3, bottle)
    assert torch.equal(again.state_dict()["fc.weight"], content["state_dict"]["model.fc.weight"])


def test_published_weights_that_cannot_be_had_are_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"model\.pretrained: timm's weights of test_resnet"):
        build(config(model__pretrained=True), 3, FolderBottle(tmp_path))


def test_an_unknown_architecture_is_refused_with_near_names() -> None:
    with pytest.raises(ConfigurationError, match="resnet"):
        build(config(model__backbone_name="resnet_17_and_a_half"), 3, FolderBottle(Path()))


def test_the_average_is_what_is_kept_and_its_names_are_clean(tmp_path: Path) -> None:
    _, content, bottle = fit(tmp_path, config(training__ema_decay=0.5), examples(tmp_path / "pictures"))
    best = torch.load(bottle.path(PATHS.best_checkpoint), weights_only=True)["state_dict"]
    assert set(best) == set(Classifier("test_resnet", 3).state_dict())
    assert not torch.equal(best["fc.weight"], content["state_dict"]["model.fc.weight"])


def test_an_average_follows_its_definition() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    average = average_of(model, decay=0.5)
    expected = None
    for update in range(30):
        torch.nn.init.constant_(model.weight, float(update))
        average.update_parameters(model)
        share = 1 - min(0.5, (1 + update) / (10 + update))
        expected = 0.0 if expected is None else expected + share * (update - expected)
    assert average.module.weight.item() == pytest.approx(expected, abs=1e-4)


def test_a_compiled_model_is_compiled_and_keeps_clean_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    _, content, bottle = fit(tmp_path, config(training__compile=True), examples(tmp_path / "pictures"))
    assert compiled == ["Classifier"]
    monkeypatch.undo()
    model = Classifier("test_resnet", 3)
    model.compile(backend="eager")
    model(torch.zeros(2, 3, 16, 16))
    assert set(model.state_dict()) == {name.removeprefix("model.") for name in content["state_dict"]}
    spec = ModelSpec(group="g", architecture="test_resnet", labels=LABELS, preprocessing=config().preprocessing)
    load_classifier(bottle.local(PATHS.best_checkpoint), spec)
