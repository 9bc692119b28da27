"""Pinning base images by digest, against a registry that speaks the protocol and holds what the test put there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from local.base_images import RegistryError, images, pin, resolve, unpinned, usable

ROOT = Path(__file__).resolve().parents[2]
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
INDEX = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}).encode()
DIGEST = f"sha256:{hashlib.sha256(INDEX).hexdigest()}"
# What buildx 0.13 printed for the index above.
RECORDED = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "digest": DIGEST, "size": len(INDEX)})


class Registry(BaseHTTPRequestHandler):
    """The part of https://github.com/opencontainers/distribution-spec that reads a manifest: one tag of one image."""

    def do_HEAD(self) -> None:
        if self.path not in ("/v2/python/manifests/3.11", f"/v2/python/manifests/{DIGEST}"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", INDEX_TYPE)
        self.send_header("Content-Length", str(len(INDEX)))
        self.send_header("Docker-Content-Digest", DIGEST)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if "/manifests/" in self.path:
            self.wfile.write(INDEX)

    def log_message(self, *_args: object) -> None:
        """Write nothing."""


@pytest.fixture
def registry() -> Iterator[str]:
    """The address of a running registry, for Docker's own client."""
    plugin = shutil.which("docker") and subprocess.run(["docker", "buildx", "version"], capture_output=True)
    if not plugin or plugin.returncode != 0:
        pytest.skip("the plugin buildx of Docker's client is not installed")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def docker_that_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a `docker` that comes first in PATH: it prints the file `answer`, and lacks the tag in `fails`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "docker"
    program.write_text(
        "#!/bin/sh\nfor tag; do :; done\n"
        f'if [ "$tag" = "$(cat {folder}/fails)" ]; then echo "ERROR: $tag: not found" >&2; exit 1; fi\n'
        f"cat {folder}/answer\n"
    )
    program.chmod(0o755)
    (folder / "answer").write_text(RECORDED)
    (folder / "fails").write_text("")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def versions_file(folder: Path, *lines: str) -> Path:
    file = folder / "versions.env"
    file.write_text("# what it is made of\n" + "".join(f"{line}\n" for line in lines) + "TORCH_BACKEND=cu130\n")
    return file


def test_the_digest_is_the_one_that_a_registry_has(registry: str, tmp_path: Path) -> None:
    file = versions_file(tmp_path, f"PYTHON_IMAGE={registry}/python:3.11")
    assert unpinned(file) == [f"{registry}/python:3.11"]
    pin(file, ["PYTHON_IMAGE"])
    expected = ["# what it is made of", f"PYTHON_IMAGE={registry}/python:3.11@{DIGEST}", "TORCH_BACKEND=cu130"]
    assert file.read_text().splitlines() == expected
    assert unpinned(file) == []
    assert resolve(images(file)["PYTHON_IMAGE"]) == images(file)["PYTHON_IMAGE"], "a pinned one is asked for by its tag"
    with pytest.raises(RegistryError, match=r"python:3\.12"):
        resolve(f"{registry}/python:3.12")


def test_one_tag_that_is_not_there_leaves_all_as_they_are(docker_that_answers: Path, tmp_path: Path) -> None:
    file = versions_file(tmp_path, "PYTHON_IMAGE=python:3.11", "REDIS_IMAGE=redis:7.2")
    before = file.read_text()
    (docker_that_answers / "fails").write_text("redis:7.2")
    with pytest.raises(RegistryError, match=r"redis:7\.2: not found"):
        pin(file, ["PYTHON_IMAGE", "REDIS_IMAGE"])
    assert file.read_text() == before
    (docker_that_answers / "fails").write_text("")
    pin(file, ["PYTHON_IMAGE", "REDIS_IMAGE"])
    assert images(file) == {"PYTHON_IMAGE": f"python:3.11@{DIGEST}", "REDIS_IMAGE": f"redis:7.2@{DIGEST}"}


@pytest.mark.parametrize("answer", ["", "{}", '{"digest": "latest"}', "null"])
def test_an_answer_without_a_digest_is_refused(docker_that_answers: Path, answer: str) -> None:
    (docker_that_answers / "answer").write_text(answer)
    with pytest.raises(RegistryError, match="has no digest"):
        resolve("redis:7.2")


@pytest.mark.parametrize("image", ["redis:7.2", "redis:7.2@sha256:abc", f"redis@{DIGEST[:-1]}", ""])
def test_what_is_no_digest_does_not_count_as_one(tmp_path: Path, image: str) -> None:
    assert unpinned(versions_file(tmp_path, f"REDIS_IMAGE={image}")) == [image]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The part of the checkout that `docker/build` and `docker/pin` read; the base image of Python has no digest."""
    folder = tmp_path / "checkout"
    for name in ("docker", "local"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "wheels", "*_cpu"))
    (folder / "docker" / "wheels").mkdir()
    shutil.copy(ROOT / "pyproject.toml", folder)
    file = folder / "docker" / "versions.env"
    file.write_text(file.read_text().replace(images()["PYTHON_IMAGE"], "python:3.11"))
    return folder


def run(command: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {**os.environ, "NIGHTSHIFT_COMMIT": "1" * 40, "DOCKER_HOST": "unix:///no/engine", **environment}
    return subprocess.run([command, *arguments], capture_output=True, text=True, env=known)


def test_all_base_images_are_pinned() -> None:
    assert unpinned() == []


def test_a_release_is_not_built_on_images_that_have_no_digest(checkout: Path) -> None:
    built = run(checkout / "docker" / "build", "services", NIGHTSHIFT_RELEASE="1")
    assert built.returncode == 1 and "python:3.11 has no digest" in built.stderr
    checked = run(checkout / "docker" / "pin", "--check")
    assert checked.returncode == 1 and checked.stderr.strip() == "without a digest: python:3.11"


@pytest.mark.parametrize(
    ("name", "base", "digest"),
    [
        ("services", "python:3.11", None),
        ("conversion", "nightshift/training:dev", None),
        ("tensorrt", *images()["TENSORRT_IMAGE"].split("@")),
    ],
)
def test_an_image_says_on_which_one_it_rests_and_by_which_digest(
    checkout: Path, docker_that_answers: Path, name: str, base: str, digest: str | None
) -> None:
    """Docker's part is a stand-in here: it has what it is told to have, and writes down what it is called with."""
    (docker_that_answers / "docker").write_text(
        f'#!/bin/sh\necho "$@" >> {docker_that_answers}/calls\n[ "$1" != build ] && echo "[\\"known\\"]"\nexit 0\n'
    )
    run(checkout / "docker" / "build", name)
    (call,) = (line for line in (docker_that_answers / "calls").read_text().splitlines() if line.startswith("build "))
    assert f"--label=org.opencontainers.image.base.name={base} " in call
    assert re.findall(r"--label=org.opencontainers.image.base.digest=(\S+)", call) == ([digest] if digest else [])


@pytest.mark.parametrize(
    ("digests", "wanted"),
    [
        ("[]", "python:3.11"),  # built here: no registry knows it
        (f'["python@{DIGEST}"]', f"python:3.11@{DIGEST}"),
    ],
)
def test_where_the_engine_has_built_a_base_image_itself_its_tag_stands_for_the_pinned_one(
    docker_that_answers: Path, digests: str, wanted: str
) -> None:
    (docker_that_answers / "answer").write_text(digests)
    assert usable(f"python:3.11@{DIGEST}") == wanted
    (docker_that_answers / "fails").write_text("python:3.11")
    assert usable(f"python:3.11@{DIGEST}") == f"python:3.11@{DIGEST}", "not there: the pinned one is fetched"
