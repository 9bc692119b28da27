"""Initial weights, fine-tuning, averages, compiled models: the right values under clean names."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import types
from pathlib import Path

import lightning.pytorch as lightning
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel

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


def timm_model(classes: int = 3, name: str = "test_resnet") -> torch.nn.Module:
    torch.manual_seed(7)
    model: torch.nn.Module = timm.create_model(name, num_classes=classes)
    return model.eval()


def same_logits(new: torch.nn.Module, old: torch.nn.Module, side: int = 64) -> bool:
    pictures = torch.rand(2, 3, side, side)
    return torch.allclose(new.eval()(pictures), old.eval()(pictures), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "mobilenetv3_small_050"]
)
def test_a_timm_model_with_its_classes_is_taken(name: str, tmp_path: Path) -> None:
    """In mobilenetv3 a layer stands between features and classes, in convnext a norm stands beside the classes."""
    old = timm_model(name=name)
    torch.save(old.state_dict(), tmp_path / "old.ckpt")
    assert same_logits(tuned(tmp_path, model__backbone_name=name), old, side=160)


def test_a_timm_model_of_other_classes_gives_its_backbone(tmp_path: Path) -> None:
    old = timm_model(classes=1000)
    torch.save(old.state_dict(), tmp_path / "old.ckpt")
    backbone = tuned(tmp_path).backbone.state_dict()
    assert all(torch.equal(value, old.state_dict()[name]) for name, value in backbone.items())


def test_two_classification_layers_start_anew(tmp_path: Path) -> None:
    old = timm_model(name="levit_128s")  # with a batch norm in each, and not a word of them in the backbone
    torch.save(old.state_dict(), tmp_path / "old.ckpt")
    backbone = tuned(tmp_path, model__backbone_name="levit_128s").backbone.state_dict()
    assert all(torch.equal(value, old.state_dict()[name]) for name, value in backbone.items())


def test_safetensors_are_taken(tmp_path: Path) -> None:
    old = timm_model()
    save_file(old.state_dict(), tmp_path / "model.safetensors")
    chosen = config(directories__models=str(tmp_path), model__load_from="model.safetensors")
    assert same_logits(build(chosen, 3, FolderBottle(tmp_path / "bottle")), old)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(DataValidationError, match=r"model\.safetensors is not a \.safetensors file"):
        build(chosen, 3, FolderBottle(tmp_path / "bottle"))


class Users(lightning.LightningModule):
    """A module as Lightning's users write it: the model below an attribute, a loss with weights beside it."""

    def __init__(self, options: argparse.Namespace, attribute: str) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.attribute = attribute
        setattr(self, attribute, timm_model())
        self.criterion = torch.nn.CrossEntropyLoss(weight=torch.ones(3))


@pytest.mark.parametrize("attribute", ["model", "net", "backbone", "encoder"])
def test_a_lightning_checkpoint_with_hyperparameters_in_a_namespace_is_taken(attribute: str, tmp_path: Path) -> None:
    module = Users(argparse.Namespace(lr=1e-3, crop=(0.1, 0.9), name="a"), attribute)
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "old.ckpt")
    assert same_logits(tuned(tmp_path), getattr(module, attribute))


def wrapped(old: torch.nn.Module) -> dict[str, object]:
    other = timm_model().requires_grad_(False)
    other.load_state_dict({name: value * 0 for name, value in other.state_dict().items()})
    state, zeros = old.state_dict(), other.state_dict()
    return {
        "ddp": {f"module.{name}": value for name, value in state.items()},
        "compiled ddp": {"state_dict": {f"module._orig_mod.{name}": value for name, value in state.items()}},
        "ddp in lightning": {"state_dict": {f"model.module.{name}": value for name, value in state.items()}},
        "model": {"model": state, "optimizer": {"state": {}}, "epoch": 3},
        "model_state_dict": {"model_state_dict": state, "epoch": 3},
        "timm's trainer": {
            "state_dict": zeros,
            "state_dict_ema": state,
            "args": argparse.Namespace(lr=1.0),
            "metric": 1.0,
        },
        "torchvision's trainer": {"model": zeros, "model_ema": AveragedModel(old).state_dict(), "epoch": 1},
        "an average": AveragedModel(old).state_dict(),
    }


@pytest.mark.parametrize("how", sorted(wrapped(timm_model())))
def test_what_trainers_put_around_weights_is_taken_off(how: str, tmp_path: Path) -> None:
    """Where there is an average beside the last weights, it is the one that was validated."""
    old = timm_model()
    torch.save(wrapped(old)[how], tmp_path / "old.ckpt")
    assert same_logits(tuned(tmp_path), old)


def test_an_attribute_dict_of_an_older_lightning_is_read_as_a_dict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("pytorch_lightning.utilities.parsing")
    kind = type("AttributeDict", (dict,), {"__module__": module.__name__})
    module.AttributeDict = kind  # type: ignore[attr-defined]
    old = timm_model()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        patch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
        torch.save({"state_dict": old.state_dict(), "hyper_parameters": kind(lr=1.0)}, tmp_path / "old.ckpt")
    assert same_logits(tuned(tmp_path), old)


def test_a_checkpoint_wins_over_published_weights_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = saved(tmp_path)
    assert same_logits(tuned(tmp_path, model__pretrained=True), old)
    assert "model.pretrained: true has no effect: model.load_from is set, and wins" in caplog.text


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def test_a_checkpoint_that_holds_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps({"state_dict": Bomb()}))
    with pytest.raises(DataValidationError, match=r"old\.ckpt"):
        tuned(tmp_path)
    for hidden in (Bomb(), argparse.Namespace(a=Bomb()), {"b": [Bomb()]}):
        torch.save({"state_dict": timm_model().state_dict(), "args": hidden}, tmp_path / "old.ckpt")
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


def test_an_unknown_architecture_is_refused_with_near_names() -> None:
    with pytest.raises(ConfigurationError, match="resnet"):
        build(config(model__backbone_name="resnet_17_and_a_half"), 3, FolderBottle(Path()))


def test_arguments_reach_the_architecture_and_those_that_it_does_not_take_are_named() -> None:
    nowhere = FolderBottle(Path("nowhere"))
    wide = build(
        config(model__backbone_name="test_vit", model__arguments={"img_size": 64, "embed_dim": 32}), 3, nowhere
    )
    assert wide.fc.in_features == 32 and wide(torch.rand(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(
        ConfigurationError, match=r"^model\.arguments\.img_size: test_resnet does not take it; .*output_stride"
    ):
        build(config(model__arguments={"img_size": 64}), 3, nowhere)
    with pytest.raises(
        ConfigurationError, match=r"model\.arguments\.output_stride: test_resnet cannot be built with that"
    ):
        build(config(model__arguments={"output_stride": 7}), 3, nowhere)
    with pytest.raises(ValueError, match=r"it cannot stand here: model\.in_channels gives it"):
        config(model__arguments={"in_chans": 1})


def test_a_model_with_arguments_is_built_again_by_its_description(tmp_path: Path) -> None:
    chosen = config(model__arguments={"output_stride": 8})
    _, content, bottle = fit(tmp_path, chosen, examples(tmp_path / "pictures"))
    spec = ModelSpec(
        group="g", architecture="test_resnet", arguments=chosen.model.arguments, labels=LABELS,
        preprocessing=chosen.preprocessing,
    )  # fmt: skip
    again = load_classifier(bottle.local(PATHS.best_checkpoint), ModelSpec.model_validate_json(spec.model_dump_json()))
    best = torch.load(bottle.path(PATHS.best_checkpoint), weights_only=True)["state_dict"]
    pictures, plain = torch.rand(2, 3, 64, 64), Classifier("test_resnet", 3).eval()
    plain.load_state_dict(best)
    assert content["epoch"] == 1 and not torch.allclose(again(pictures), plain(pictures), atol=1e-5)


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


def test_a_checkpoint_of_others_is_opened_in_the_sandbox_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    monkeypatch.setenv("NIGHTSHIFT_SANDBOX", "require")
    monkeypatch.setattr("jobkit.sandbox.landlock.abi", lambda: 0)
    with pytest.raises(ConfigurationError, match="weights are not opened here: Landlock cannot be had"):
        tuned(tmp_path)
