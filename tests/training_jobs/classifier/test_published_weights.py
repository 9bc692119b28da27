"""`pretrained: true` starts from weights that are at hand, and says of a model what it was trained from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save, save_file

from conversion_jobs import fetch_weights
from jobkit import job
from jobkit.bottle import FolderBottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.model_spec import ModelSpec
from jobkit.state_dict import read_state_dict
from tests.support.weights_hub import Hub, running_hub
from tests.training_jobs.classifier.support import config, draw
from training_jobs.classifier.weights import build, initial_weights
from training_jobs.train_classifier import Arguments, run

NAME = "test_resnet.r160_in1k"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, empty caches; weights are opened in this process, since the sandbox takes seconds to start."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NIGHTSHIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("training_jobs.classifier.weights.read_foreign_state_dict", read_state_dict)
    monkeypatch.setattr("jobkit.state_dict.read_foreign_state_dict", read_state_dict)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as found:
        found.files[f"/timm/{NAME}/resolve/main/model.safetensors"] = save(published(3).state_dict())
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found


def published(seed: int, name: str = "test_resnet") -> torch.nn.Module:
    """Return a model with its 1,000 classes, as timm publishes it."""
    torch.manual_seed(seed)
    model: torch.nn.Module = timm.create_model(name)
    return model


def starts_from(bottle: FolderBottle, expected: torch.nn.Module, **values: object) -> bool:
    torch.manual_seed(1)
    backbone = build(config(model__pretrained=True, **values), 3, bottle).backbone.state_dict()
    whole = expected.state_dict()
    return all(torch.equal(value, whole[name]) for name, value in backbone.items())


def test_without_weights_the_error_has_the_command_that_fetches_them(hub: Hub, bottle: FolderBottle) -> None:
    with pytest.raises(ConfigurationError) as refused:
        build(config(model__pretrained=True), 3, bottle)
    line = str(refused.value).split("bottle: ")[1].split(" (where")[0]
    variable, *command = shlex.split(line)
    assert variable == f"NIGHTSHIFT_BOTTLE={bottle}" and command[:3] == [
        "python",
        "-m",
        "conversion_jobs.fetch_weights",
    ]
    assert not hub.asked
    fetch_weights.run(job.parse(fetch_weights.Arguments, command[3:]), job.Context(Path(), None))
    hub.asked.clear()
    assert starts_from(bottle, published(3)) and not hub.asked


def test_a_file_beside_the_models_wins_over_the_bottle_and_that_over_the_caches(
    bottle: FolderBottle, tmp_path: Path
) -> None:
    snapshot = tmp_path / "hub" / f"models--timm--{NAME}" / "snapshots" / ("1" * 40)
    for folder in (snapshot, snapshot.parents[1] / "refs", tmp_path / "models"):
        folder.mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("1" * 40)
    save_file(published(5).state_dict(), snapshot / "model.safetensors")
    assert starts_from(bottle, published(5))
    bottle.write(f"weights/{NAME}.safetensors", save(published(6).state_dict()))
    assert starts_from(bottle, published(6))
    torch.save(published(7).state_dict(), tmp_path / "models" / "test_resnet.pth")
    assert starts_from(bottle, published(7), directories__models=str(tmp_path / "models"))


def test_weights_that_torch_keeps_are_taken(bottle: FolderBottle, tmp_path: Path) -> None:
    url = timm.models.get_pretrained_cfg("efficientnet_b0.ra_in1k").url
    kept = tmp_path / "torch" / "hub" / "checkpoints" / url.rpartition("/")[2]
    kept.parent.mkdir(parents=True)
    torch.save(published(3, "efficientnet_b0").state_dict(), kept)
    assert starts_from(bottle, published(3, "efficientnet_b0"), model__backbone_name="efficientnet_b0.ra_in1k")


def test_gray_pictures_are_seen_as_in_color(bottle: FolderBottle) -> None:
    bottle.write(f"weights/{NAME}.safetensors", save(published(3).state_dict()))
    gray = build(config(model__pretrained=True, model__in_channels=1), 3, bottle).backbone
    color = build(config(model__pretrained=True), 3, bottle).backbone
    pictures = torch.rand(2, 1, 32, 32)
    assert torch.allclose(gray.eval()(pictures), color.eval()(pictures.expand(-1, 3, -1, -1)), atol=1e-5)


def test_a_position_embedding_is_brought_to_another_size(bottle: FolderBottle) -> None:
    bottle.write("weights/test_vit.r160_in1k.safetensors", save(published(3, "test_vit").state_dict()))
    chosen = config(model__pretrained=True, model__backbone_name="test_vit", model__arguments={"img_size": 96})
    assert build(chosen, 3, bottle)(torch.rand(2, 3, 96, 96)).shape == (2, 3)


@pytest.mark.parametrize("other", ["test_efficientnet", "resnet10t"])
def test_weights_of_something_else_are_refused(other: str, bottle: FolderBottle) -> None:
    """Where timm would leave out what does not fit, and train from random weights."""
    bottle.write(f"weights/{NAME}.safetensors", save(published(3, other).state_dict()))
    with pytest.raises(ConfigurationError, match=rf"{NAME}\.safetensors (has 0 of the|does not fit)"):
        build(config(model__pretrained=True), 3, bottle)
    state = published(3).state_dict()
    state.pop("layer4.0.conv2.weight")
    bottle.write(f"weights/{NAME}.safetensors", save(state))
    with pytest.raises(ConfigurationError, match=r"not layer4\.0\.conv2\.weight: these are weights of something else"):
        build(config(model__pretrained=True), 3, bottle)


def test_a_file_that_is_not_what_its_record_says_is_refused(hub: Hub, bottle: FolderBottle) -> None:
    fetch_weights.run(fetch_weights.Arguments(name=NAME), job.Context(Path(), None))
    bottle.write(f"weights/{NAME}.safetensors", save(published(4).state_dict()))
    with pytest.raises(DataValidationError, match=rf"{NAME}\.safetensors is [0-9a-f]{{64}}, not "):
        build(config(model__pretrained=True), 3, bottle)
    assert hub.asked


def test_a_model_says_what_it_was_trained_from_and_one_that_is_tuned_further_as_well(
    hub: Hub, bottle: FolderBottle, context: job.Context, tmp_path: Path
) -> None:
    fetched = fetch_weights.run(fetch_weights.Arguments(name=NAME, license="for science only"), context).weights
    assert fetched is not None and hub.asked
    draw(tmp_path / "pictures", 3)
    content = config(
        model__pretrained=True, training__epochs=1, dataset__label_source="folders",
        directories__images=str(tmp_path / "pictures"),
    ).model_dump(mode="json")  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(content))
    trained = run(Arguments(config_filename=path), context)
    spec = ModelSpec.model_validate_json(bottle.read(f"{trained.experiment}/model.json"))
    assert spec.initial_weights == fetched and fetched.license == "for science only"
    assert "for science only" in bottle.read(f"{trained.experiment}/report.html").decode()
    further = config(model__load_from=trained.checkpoint)
    origin = initial_weights(further, bottle)
    assert origin is not None and (origin.name, origin.license) == (trained.checkpoint, "for science only")
    # What nobody knows is said to be unknown.
    assert initial_weights(config(), bottle) is None
    bottle.put("mine.ckpt", bottle.local(trained.checkpoint))
    unknown = initial_weights(config(model__load_from="mine.ckpt"), bottle)
    assert unknown is not None and (unknown.license, unknown.sha256) == ("unknown", origin.sha256)
