"""Versions stand in one place: docker/versions.env for the cluster, requirements/*.in and their locks for Python."""

import re
import subprocess
from pathlib import Path

from local.bootstrap import UV_VERSION

ROOT = Path(__file__).resolve().parents[2]
LINES = (ROOT / "docker" / "versions.env").read_text().splitlines()
VERSIONS = dict(line.split("=", 1) for line in LINES if line and not line.startswith("#"))


def test_airflow_is_the_same_in_the_images_and_in_the_environments() -> None:
    wanted = f"apache-airflow=={VERSIONS['AIRFLOW_VERSION']}"
    for name in ("airflow.in", "airflow.txt"):
        lines = (ROOT / "requirements" / name).read_text().splitlines()
        pinned = [line for line in lines if re.match(r"apache-airflow(\[.*\])?==", line)]
        assert pinned == [wanted], f"requirements/{name} and docker/versions.env name different versions of Airflow"


def test_no_other_file_names_an_image_or_its_tag() -> None:
    texts = {value for name, value in VERSIONS.items() if name != "AIRFLOW_VERSION" and not name.startswith("TORCH")}
    tags = {tag for tag in (text.partition(":")[2] for text in texts) if len(tag) > 4} | {VERSIONS["TENSORRT_TAG"]}
    folders = [
        "docker",
        "docker-compose.yaml",
        "local",
        "plugins",
        "dags",
        "conversion_jobs",
        "training_jobs",
        "services",
    ]
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wrong = []
    for name in listed.splitlines():
        if name == "docker/versions.env":
            continue
        content = (ROOT / name).read_text(errors="ignore")
        wrong += [f"{name}: {text}" for text in texts if text in content]
        wrong += [f"{name}: :{tag}" for tag in tags if re.search(rf"[:=]{re.escape(tag)}\b", content)]
    assert not wrong, wrong


def test_triton_and_tensorrt_have_one_tag() -> None:
    assert ":" not in VERSIONS["TENSORRT_IMAGE"] + VERSIONS["TRITON_IMAGE"]
    cluster = (ROOT / "docker" / "cluster.yaml").read_text()
    conversion = (ROOT / "docker" / "conversion.Dockerfile").read_text()
    assert "${TRITON_IMAGE}:${TENSORRT_TAG}" in cluster and "${TENSORRT_IMAGE}:${TENSORRT_TAG}" in conversion


def test_no_image_is_taken_as_it_comes() -> None:
    """Every image has a tag, none of them `latest`; uv is the one that made the locks."""
    images = [value for name, value in VERSIONS.items() if name.endswith("_IMAGE") and "nvidia" not in value]
    assert images and all(re.search(r":[\d.v]+", image) for image in images)
    for file in sorted((ROOT / "docker").glob("*.Dockerfile")):
        text = file.read_text()
        assert "latest" not in text, file.name
        assert not re.search(r"^ARG [A-Z_]+=", text, re.MULTILINE), f"{file.name}: docker/build passes the versions"
        assert all(version == UV_VERSION for version in re.findall(r"uv==([\d.]+)", text)), file.name
