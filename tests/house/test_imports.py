"""Who may import whom: two worlds that meet in the job contract only."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = {"dags", "nightshift", "nightshift_common", "jobkit", "training_jobs", "conversion_jobs", "services", "local"}
ALLOWED = {
    "nightshift_common": {"nightshift_common"},
    "dags": {"nightshift", "nightshift_common"},
    "plugins/nightshift": {"nightshift", "nightshift_common"},
    "jobkit": {"jobkit", "nightshift_common"},
    "training_jobs": {"jobkit", "training_jobs", "nightshift_common"},
    "conversion_jobs": {"jobkit", "conversion_jobs", "nightshift_common"},
    "services": {"services", "nightshift_common"},
    "local": {"local", "nightshift_common"},
}
FOREIGN = {
    "nightshift_common": {"airflow", "torch", "timm", "mlflow", "onnx", "onnxruntime", "cv2", "boto3", "psycopg2"},
    "dags": {"torch", "timm", "lightning", "mlflow", "onnx", "onnxruntime", "cv2"},
    "plugins/nightshift": {"torch", "timm", "lightning", "mlflow", "onnx", "onnxruntime", "cv2"},
    "jobkit": {"airflow"},
    "training_jobs": {"airflow"},
    "conversion_jobs": {"airflow"},
    "services": {"airflow", "torch"},
    "local": {"airflow", "torch"},
}
TRAVELS = "nightshift_common/picture_preparation.py"
STANDARD = {"__future__", "base64", "dataclasses", "re", "typing"}


def test_ultralytics_which_is_agpl_is_imported_by_two_files_that_nothing_else_needs() -> None:
    folders = [folder for folder in ALLOWED if (ROOT / folder).is_dir()]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    using = {str(path.relative_to(ROOT)) for path in files if "ultralytics" in imported_packages(path)}
    assert using == {"jobkit/detection/ultralytics_weights.py", "training_jobs/detector/ultralytics_trainer.py"}
    pinned = {path.name for path in (ROOT / "requirements").iterdir() if "ultralytics" in path.read_text()}
    assert {name for name in pinned if not name.startswith("detection")} == set()


def test_conversions_load_models_in_the_sandbox_alone() -> None:
    loads = re.compile(
        r"\b(load_(source|experiment|torchscript|detector|classifier)|read_state_dict|(jit|torch)\.load)\("
    )
    found = {str(p.relative_to(ROOT)) for p in (ROOT / "conversion_jobs").rglob("*.py") if loads.search(p.read_text())}
    inside = {f"conversion_jobs/sandboxed/{name}.py" for name in ("answering", "exporting", "importing")}
    assert found == {"conversion_jobs/families/sources.py"} | inside


def imported_packages(path: Path) -> set[str]:
    """Return the top-level packages that a file imports, wherever in the file it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {node.module.split(".")[0]}
    return found


def test_the_one_file_of_nightshift_common_that_needs_opencv_travels_alone_to_triton_and_mlflow() -> None:
    assert imported_packages(ROOT / TRAVELS) <= {*STANDARD, "numpy", "cv2"}


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_a_part_imports_only_what_it_may(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files, f"{folder} has no Python files: the test would check nothing"
    wrong = {
        f"{path.relative_to(ROOT)} imports {package}"
        for path in files
        for package in imported_packages(path)
        if (package in OURS - ALLOWED[folder]) or package in FOREIGN[folder]
        if (str(path.relative_to(ROOT)), package) != (TRAVELS, "cv2")
    }
    # The test support of the CPU torchvision is installed into the jobs' environment: it is no part of `local`.
    wrong = {line for line in wrong if not line.startswith("local/torchvision_cpu/")}
    assert not wrong, "\n".join(sorted(wrong))
