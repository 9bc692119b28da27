"""Published weights get into the bottle whole, checked, and with a word about their origin.

The internet is not there: the hub is a double of ours (`tests/support/weights_hub.py`), the weights are made here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
import timm
import torch
from safetensors.torch import load, save
from tenacity import wait_none

from conversion_jobs import fetch_weights
from jobkit import job
from jobkit.bottle import FolderBottle
from jobkit.errors import ConfigurationError, DataValidationError, TransientError
from tests.support.weights_hub import COMMIT, Hub, running_hub

NAME = "test_resnet.r160_in1k"
PATH = f"/timm/{NAME}/resolve/main/model.safetensors"


@pytest.fixture(scope="module")
def content() -> bytes:
    """Weights as timm publishes them."""
    torch.manual_seed(3)
    return save(timm.create_model("test_resnet").state_dict())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> Iterator[Hub]:
    with running_hub() as found:
        found.files[PATH] = content
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as the images have it: trainings never ask
        monkeypatch.setenv("NIGHTSHIFT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("jobkit.retry.wait_random_exponential", lambda **_: wait_none())
        yield found


@pytest.fixture
def bottle(tmp_path: Path) -> FolderBottle:
    return FolderBottle(tmp_path / "bottle")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open weights in this process; one test below has the sandbox, which takes seconds to start."""
    monkeypatch.setattr("jobkit.state_dict.read_foreign_state_dict", _read)


def _read(path: Path) -> dict[str, torch.Tensor]:
    from jobkit.state_dict import read_state_dict

    return read_state_dict(path)


def fetch(bottle: FolderBottle, **values: object) -> fetch_weights.Result:
    context = job.Context(Path(), None)
    context.__dict__["bottle"] = bottle
    return fetch_weights.run(fetch_weights.Arguments(**{"name": "test_resnet", **values}), context)


def test_a_name_of_timms_is_fetched_from_the_hub_with_its_license_and_hash(
    hub: Hub, bottle: FolderBottle, content: bytes
) -> None:
    result = fetch(bottle)
    digest = hashlib.sha256(content).hexdigest()
    assert result.weights is not None and result.weights.model_dump() == {
        "name": NAME,
        "source": f"hub:timm/{NAME}@{COMMIT}/model.safetensors",
        "license": timm.models.get_pretrained_cfg(NAME).license,
        "sha256": digest,
    }
    assert not result.was_there and bottle.read(f"weights/{NAME}.safetensors") == content
    assert json.loads(bottle.read(f"weights/{NAME}.json"))["sha256"] == digest
    hub.asked.clear()
    assert fetch(bottle).was_there and not hub.asked  # once


def test_a_repository_with_the_older_form_only_is_taken(
    hub: Hub, bottle: FolderBottle, content: bytes, tmp_path: Path
) -> None:
    torch.save(load(hub.files.pop(PATH)), tmp_path / "weights.bin")
    hub.files[PATH.replace("model.safetensors", "pytorch_model.bin")] = (tmp_path / "weights.bin").read_bytes()
    assert fetch(bottle).target == Path(f"weights/{NAME}.pth")


def test_a_download_that_breaks_off_goes_on_where_it_was(hub: Hub, bottle: FolderBottle, content: bytes) -> None:
    hub.breaks_off_after = 100_000
    fetch(bottle)
    assert [wanted for path, wanted in hub.asked if path.startswith("/stored")] == [None, "bytes=100000-"]
    assert bottle.read(f"weights/{NAME}.safetensors") == content


def test_a_file_that_changed_meanwhile_is_not_put_together_from_two(
    hub: Hub, bottle: FolderBottle, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobkit.retry.ATTEMPTS", 1)
    hub.breaks_off_after = 100_000
    with pytest.raises(TransientError, match="broke off"):
        fetch(bottle)
    assert not list(bottle.keys("weights"))
    torch.manual_seed(4)
    hub.files[PATH] = save(timm.create_model("test_resnet").state_dict())
    fetch(bottle)
    assert bottle.read(f"weights/{NAME}.safetensors") == hub.files[PATH] != content


def test_a_server_that_is_not_well_for_a_moment_is_asked_again(hub: Hub, bottle: FolderBottle) -> None:
    hub.failures = 2
    assert not fetch(bottle).was_there


def test_what_is_not_what_its_publisher_says_is_refused_by_name(hub: Hub, bottle: FolderBottle) -> None:
    hub.claimed[PATH] = "0" * 64
    with pytest.raises(DataValidationError, match=rf"{NAME}.*model\.safetensors is [0-9a-f]{{64}}, not 0{{64}}"):
        fetch(bottle)
    with pytest.raises(DataValidationError, match=r"not 1{64}"):
        fetch(bottle, sha256="1" * 64)
    assert not list(bottle.keys("weights"))


def test_a_page_in_the_place_of_weights_is_refused(hub: Hub, bottle: FolderBottle) -> None:
    hub.files[PATH] = b"<html>please log in</html>"
    with pytest.raises(DataValidationError, match=r"not a \.safetensors file"):
        fetch(bottle)
    assert not list(bottle.keys("weights"))


def test_what_the_hub_does_not_have_is_named(hub: Hub, bottle: FolderBottle) -> None:
    hub.files.clear()
    with pytest.raises(ConfigurationError, match=r"pytorch_model\.bin: there is nothing at this address"):
        fetch(bottle)


@pytest.mark.usefixtures("hub")
def test_weights_in_the_bottle_that_changed_are_refused_by_name(bottle: FolderBottle) -> None:
    fetch(bottle)
    bottle.write(f"weights/{NAME}.safetensors", b"changed")
    with pytest.raises(DataValidationError, match=rf"weights/{NAME}\.safetensors is [0-9a-f]{{64}}, not "):
        fetch(bottle)


@pytest.mark.parametrize("form", ["{}", "file:{}"])
def test_weights_at_hand_are_taken(form: str, bottle: FolderBottle, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "from a disk.safetensors"
    path.write_bytes(content)
    source = form.format(path).replace(" ", "%20") if form.startswith("file:") else form.format(path)
    result = fetch(bottle, source=source, license="ours")
    assert result.weights is not None and (result.weights.source, result.weights.license) == (source, "ours")
    assert bottle.read(str(result.target)) == content


def test_an_archive_with_one_file_of_weights_is_taken(bottle: FolderBottle, content: bytes, tmp_path: Path) -> None:
    for names in (["a.safetensors", "b.pth"], ["README.md"], ["x/model.safetensors", "x/README.md"]):
        with ZipFile(tmp_path / f"{len(names)}{names[0][0]}.zip", "w") as archive:
            for name in names:
                archive.writestr(name, content)
    for name, told in (("2a", "holds a.safetensors, b.pth; an archive for --name has one"), ("1R", "holds none of")):
        with pytest.raises(DataValidationError, match=told):
            fetch(bottle, source=str(tmp_path / f"{name}.zip"))
    assert bottle.read(str(fetch(bottle, source=str(tmp_path / "2x.zip")).target)) == content


def test_an_open_address_needs_a_checksum(hub: Hub, bottle: FolderBottle, content: bytes) -> None:
    url = f"{hub.url}{PATH}"
    with pytest.raises(ConfigurationError, match="may have been changed on its way"):
        fetch(bottle, source=url)
    assert not hub.asked
    assert fetch(bottle, source=url, sha256=hashlib.sha256(content).hexdigest()).weights is not None


def test_a_name_without_published_weights_is_refused(bottle: FolderBottle) -> None:
    with pytest.raises(ConfigurationError, match="timm has no architecture 'resnet_9000'; near it: "):
        fetch(bottle, name="resnet_9000")
    with pytest.raises(ConfigurationError, match="knows no published weights of vit_small_patch16_18x2_224"):
        fetch(bottle, name="vit_small_patch16_18x2_224")


def test_weights_are_opened_in_the_sandbox_alone(
    hub: Hub, bottle: FolderBottle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NIGHTSHIFT_SANDBOX", "require")
    monkeypatch.setattr("jobkit.sandbox.landlock.abi", lambda: 0)
    with pytest.raises(ConfigurationError, match="weights are not opened here: Landlock cannot be had"):
        fetch(bottle)


def test_a_folder_without_a_list_of_checksums_gets_one_that_holds_from_then_on(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "weights.zip", "w") as archive:
        archive.writestr("weights/bpr/model.pt", b"numbers")
    target = tmp_path / "training" / "weights"
    arguments = fetch_weights.Arguments(archive=(tmp_path / "weights.zip").as_uri(), target=target)
    assert not fetch_weights.run(arguments, job.Context(tmp_path, None)).was_there
    listed = tmp_path / "training" / "weights.sha256"
    assert listed.read_text() == f"{hashlib.sha256(b'numbers').hexdigest()}  bpr/model.pt\n"
    assert fetch_weights.run(arguments, job.Context(tmp_path, None)).was_there
    (target / "bpr" / "model.pt").write_bytes(b"other")
    with pytest.raises(DataValidationError, match=r"move it away: bpr/model\.pt is .*, not "):
        fetch_weights.run(arguments, job.Context(tmp_path, None))


@pytest.mark.parametrize("values", [{}, {"name": "a", "archive": "b"}, {"archive": "b", "sha256": "0" * 64}])
def test_a_command_line_that_says_two_things_is_refused(values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="--name"):
        fetch_weights.Arguments(**values)
