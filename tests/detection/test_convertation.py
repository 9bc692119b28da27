"""The command lines for detectors: `convertation/yolo`, without Airflow and without a bottle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import detectors

FOLDER = Path(__file__).resolve().parents[2] / "convertation" / "yolo"


def shell(*command: str | Path, code: int = 0) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("name", "options"), [("detect", ["--nms"]), ("segment", [])])
def test_the_lines_write_a_graph_and_compare_it_with_its_weights(tmp_path: Path, name: str, options: list[str]) -> None:
    made = tmp_path / "made"
    detectors.write(made)
    weights, graph = made / f"{name}.pt", tmp_path / "model.onnx"
    shell("torch2onnx.py", "--weights", weights, "--output", graph, "--img-size", "96", "128", *options)
    said = shell("test_onnx.py", "--onnx", graph, "--weights", weights, "--inputs", made / "pictures")
    assert '"compared": 6' in said
    assert "box_agreement" in said
    assert ("mask_agreement" in said) == (name == "segment")
    refused = shell(
        "test_onnx.py", "--onnx", graph, "--weights", made / "other.pt", "--inputs", made / "pictures", code=3
    )
    assert "the file was exported from" in refused
