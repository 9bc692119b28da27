"""What the images say about themselves: where they come from, and what they hold."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.containers.conftest import ROOT, build
from tests.support.tiny_onnx import scaling_config, scaling_model
from tests.support.waiting import wait_for

pytestmark = pytest.mark.container
TAG = os.environ.get("NIGHTSHIFT_TAG", "dev")
ENVIRONMENTS = {
    "airflow": "airflow", "services": "services", "training": "jobs", "conversion": "jobs", "detection": "detection",
    "triton-cpu": "triton",
}  # fmt: skip
JOBS = ("training", "conversion", "detection")
LIST_PYTHON = "from importlib import metadata as m; [print(d.name, d.version) for d in m.distributions()]"
LIST_DEBIAN = ["dpkg-query", "--show", "--showformat=${Package} ${Version}\n"]
ORIGIN = (
    "from jobkit.provenance import commit, environment_of_process as e, lock_sha256; print(commit(), lock_sha256(e()))"
)


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def built() -> None:
    """The images are those of this checkout."""
    if os.environ.get("NIGHTSHIFT_TEST_IMAGES") != "as-they-are":
        build(*ENVIRONMENTS)


@pytest.fixture(params=ENVIRONMENTS)
def image(engine: Any, built: None, request: pytest.FixtureRequest) -> Any:
    """Each of the images; its name is `title(image)`."""
    return engine.images.get(f"nightshift/{request.param}:{TAG}")


def title(image: Any) -> str:
    return str(image.labels["org.opencontainers.image.title"]).removeprefix("nightshift-")


def output(engine: Any, image: Any, *command: str) -> str:
    """Return what a command prints in a container without network that nothing can write to."""
    run = engine.containers.run(image, list(command), remove=True, network_mode="none", read_only=True)
    return str(run.decode())


def test_an_image_says_of_which_commit_it_was_made(image: Any) -> None:
    labels = image.labels
    found = {key: labels.get(f"org.opencontainers.image.{key}") for key in ("revision", "version", "source", "created")}
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", found["revision"])
    assert found["revision"].removesuffix("-dirty") == git("rev-parse", "HEAD")
    assert found["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert found["created"] == git("show", "--no-patch", "--format=%cI", "HEAD")
    if found["source"] is not None:  # never made up
        assert found["source"] == os.environ.get("NIGHTSHIFT_SOURCE") or "://" in git("remote", "get-url", "origin")


@pytest.mark.parametrize("image", JOBS, indirect=True)
def test_jobs_in_containers_know_commit_and_lock(engine: Any, image: Any) -> None:
    commit, lock = output(engine, image, "python", "-c", ORIGIN).split()
    assert commit == image.labels["org.opencontainers.image.revision"]
    expected = (ROOT / "requirements" / f"{ENVIRONMENTS[title(image)]}.txt").read_bytes()
    assert lock == hashlib.sha256(expected).hexdigest()


def test_an_image_lists_all_that_it_holds(engine: Any, image: Any) -> None:
    """The list against what Python and dpkg themselves find in the image; its form was judged when it was built."""
    name = title(image)
    content = json.loads(output(engine, image, "cat", "/usr/share/nightshift/sbom.cdx.json"))
    assert content["metadata"]["component"]["name"] == f"nightshift-{name}"
    listed: dict[str, set[tuple[str, str]]] = {"pypi": set(), "deb": set(), "generic": set()}
    for component in content["components"]:
        kind = re.match(r"pkg:(\w+)/", component["purl"])
        assert kind is not None, component
        listed[kind[1]].add((component["name"], component["version"]))
    python = f"/opt/nightshift/.venv/{ENVIRONMENTS[name]}/bin/python"
    found = [line.split() for line in output(engine, image, python, "-c", LIST_PYTHON).splitlines()]
    assert listed["pypi"] == {(package, version) for package, version in found} and len(found) >= 5
    debian = [line.split() for line in output(engine, image, *LIST_DEBIAN).splitlines()]
    assert listed["deb"] == {(package, version) for package, version in debian} and len(debian) > 50
    beside = json.loads((ROOT / ".nightshift" / "images" / f"{name}.cdx.json").read_text())
    assert beside["components"] == content["components"]
    assert beside["metadata"]["component"]["version"] == image.labels["org.opencontainers.image.revision"]


def test_an_image_with_its_models_serves_them_without_anything_mounted(
    engine: Any, built: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "model_repository_running"
    (repository / "twice" / "1").mkdir(parents=True)
    (repository / "twice" / "1" / "model.onnx").write_bytes(scaling_model(2.0))
    (repository / "twice" / "config.pbtxt").write_text(scaling_config("twice"))
    monkeypatch.setenv("NIGHTSHIFT_MODELS", str(repository))
    build("models-cpu")
    container = engine.containers.run(f"nightshift/models-cpu:{TAG}", detach=True)
    ready = ["healthy", "http://127.0.0.1:8000/v2/models/twice/versions/1/ready"]
    try:
        wait_for(lambda: container.exec_run(ready).exit_code == 0, "the model in the image", 180)
    finally:
        container.remove(force=True)
    (repository / "twice" / "1" / "model.onnx").write_bytes(b"not a graph")
    refused = subprocess.run([str(ROOT / "docker" / "build"), "models-cpu"], capture_output=True, text=True)
    assert refused.returncode == 1 and "the repository is not ready for Triton" in refused.stdout + refused.stderr
