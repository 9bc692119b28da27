"""Versions stand in one place: docker/versions.env for the cluster, requirements/*.in and their locks for Python."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINES = (ROOT / "docker" / "versions.env").read_text().splitlines()
VERSIONS = dict(line.split("=", 1) for line in LINES if line and not line.startswith("#"))


def tag_of(image: str) -> str:
    """Return the tag of `repository:tag` or `repository:tag@digest`; empty for another text."""
    return image.partition("@")[0].partition(":")[2]


def test_airflow_is_the_same_in_the_images_and_in_the_environments() -> None:
    wanted = f"apache-airflow=={VERSIONS['AIRFLOW_VERSION']}"
    for name in ("airflow.in", "airflow.txt"):
        lines = (ROOT / "requirements" / name).read_text().splitlines()
        pinned = [line.removesuffix(" \\") for line in lines if re.match(r"apache-airflow(\[.*\])?==", line)]
        assert pinned == [wanted], f"requirements/{name} and docker/versions.env name different versions of Airflow"


def test_no_other_file_names_an_image_or_its_tag() -> None:
    texts = {value for name, value in VERSIONS.items() if name != "AIRFLOW_VERSION" and not name.startswith("TORCH")}
    tags = {tag for tag in (tag_of(text) for text in texts) if len(tag) > 4}
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
    assert tag_of(VERSIONS["TENSORRT_IMAGE"]) == tag_of(VERSIONS["TRITON_IMAGE"]) != ""
    cluster = (ROOT / "docker" / "cluster.yaml").read_text()
    conversion = (ROOT / "docker" / "conversion.Dockerfile").read_text()
    assert "image: ${TRITON_IMAGE}\n" in cluster and "FROM ${TENSORRT_IMAGE} AS tensorrt\n" in conversion


def test_no_image_is_taken_as_it_comes() -> None:
    """Every image has a tag, none of them `latest`."""
    images = [value for name, value in VERSIONS.items() if name.endswith("_IMAGE")]
    assert len(images) == 8 and all(re.match(r"[\d.v]+", tag_of(image)) for image in images)
    for file in sorted((ROOT / "docker").glob("*.Dockerfile")):
        text = file.read_text()
        assert "latest" not in text, file.name
        assert not re.search(r"^ARG [A-Z_]+=", text, re.MULTILINE), f"{file.name}: docker/build passes the versions"


def test_pictures_decode_by_one_version_of_opencv_in_training_and_in_triton() -> None:
    pins = {
        name: re.findall(r"^opencv-python-headless==(\S+)", (ROOT / "requirements" / f"{name}.txt").read_text(), re.M)
        for name in ("jobs", "triton-without-dependencies")
    }
    assert pins["jobs"] and pins["jobs"] == pins["triton-without-dependencies"]
