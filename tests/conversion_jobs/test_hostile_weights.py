"""Files of weights that attack whoever opens them: each attack works without the sandbox, and none of them in a job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from conversion_jobs import import_weights
from conversion_jobs.families.sources import load_torchscript
from conversion_jobs.onnx.graph import read_graph
from conversion_jobs.sandboxed.importing import import_source
from jobkit.errors import DataValidationError
from jobkit.experiment import Experiment
from jobkit.sandbox import landlock, runner, seccomp
from nightshift_common.options.weights import SourceOptions
from nightshift_common.patience import patience
from tests.conversion_jobs.conftest import Trained
from tests.conversion_jobs.test_torch2onnx import weights_of

needs_kernel = pytest.mark.skipif(
    not landlock.abi() or not seccomp.is_available(), reason="this kernel has no Landlock, or no seccomp"
)
PICTURES = torch.zeros(2, 3, 32, 32)


@pytest.fixture(autouse=True)
def warm_sandbox() -> None:
    """Each attack here is on the sandbox as jobs have it."""


class Writes(nn.Module):
    """Writes 64 bytes to `path` when it is asked."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        written = torch.from_file(self.path, shared=True, size=16).fill_(1.0)
        return x.mean((2, 3))[:, :2] + written[0]


class Reads(nn.Module):
    """Answers with what the file `path` holds."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.from_file(self.path, shared=False, size=2, dtype=torch.uint8).float()
        return found.expand(x.shape[0], 2)


class Loops(nn.Module):
    """Never answers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while bool(x.sum() == 0):
            x = x * 1
        return x


def script(module: nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(str(path))
    return path


def job(module: str, bottle: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NIGHTSHIFT_BOTTLE": str(bottle), "NIGHTSHIFT_JOB_DIR": str(folder)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", f"conversion_jobs.{module}", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=patience(120))


def import_options(weights: Path, pictures: Path) -> list[str]:
    named = ["--family=torchscript", "--group=footwear", "--labels=boot,shoe", "--img_size=[32,32]"]
    return [*named, f"--weights={weights}", f"--pictures={pictures}"]


@needs_kernel
def test_torchscript_that_writes_a_file_ends_the_import_and_writes_nothing(tmp_path: Path, pictures: Path) -> None:
    target = tmp_path / "written"
    weights = script(Writes(str(target)), tmp_path / "writes.pt")
    load_torchscript(weights)(PICTURES)
    assert target.stat().st_size == 64, "the attack works where nothing holds it"
    target.unlink()
    done = job("import_weights", tmp_path / "bottle", tmp_path / "job", *import_options(weights, pictures))
    assert done.returncode == 3, done.stdout
    assert "writes.pt was refused: opening it ended in" in done.stdout
    assert "Permission denied" in done.stdout
    assert "It is opened without network, files and processes" in done.stdout
    assert not target.exists()
    assert not list((tmp_path / "bottle").glob("models/**/*.pt"))
    assert not list((tmp_path / "job").iterdir())


@needs_kernel
def test_torchscript_that_reads_a_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "id_rsa").write_text("secret")
    weights = script(Reads(str(tmp_path / "id_rsa")), tmp_path / "reads.pt")
    assert bytes(load_torchscript(weights)(PICTURES)[0].byte().tolist()) == b"se", "it works where nothing holds it"
    options = SourceOptions(family="torchscript", img_size=(32, 32))
    with (
        pytest.raises(DataValidationError, match="Permission denied"),
        runner.run(import_source, {"weights": weights, "options": options}, reads=[weights]),
    ):
        pass


@needs_kernel
@pytest.mark.parametrize("later", ["export", "verify"])
def test_an_imported_model_that_waits_for_a_later_job_is_held_there_too(
    verified: Trained, tmp_path: Path, later: str
) -> None:
    experiment, target = Experiment(verified.experiment), tmp_path / "written"
    verified.bottle.put(experiment.torchscript, script(Writes(str(target)), tmp_path / "writes.pt"))
    verified.bottle.path(experiment.best_checkpoint).unlink()
    with pytest.raises(DataValidationError):
        verified.export() if later == "export" else verified.verify()
    assert not target.exists()


class RunsCommand:
    """A pickle that runs a command when it is read."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_a_pickle_that_runs_a_command_is_refused_before_it_does(tmp_path: Path, pictures: Path) -> None:
    weights = tmp_path / "evil.pt"
    torch.save({"fc.weight": RunsCommand(f"touch {tmp_path}/ran")}, weights)
    torch.load(weights, weights_only=False)
    assert (tmp_path / "ran").exists(), "the attack works where the pickle is read"
    (tmp_path / "ran").unlink()
    options = ["--family=classifier", "--architecture=test_resnet", "--group=footwear", "--labels=a,b"]
    sources = [f"--weights={weights}", f"--pictures={pictures}"]
    done = job("import_weights", tmp_path / "bottle", tmp_path / "job", *options, *sources)
    assert done.returncode == 3, done.stdout
    assert "is not a checkpoint of weights alone" in done.stdout
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_torchscript_that_never_answers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SECONDS", 20)
    weights = script(Loops(), tmp_path / "endless.pt")
    options = SourceOptions(family="torchscript", img_size=(32, 32))
    with (
        pytest.raises(DataValidationError, match=r"endless\.pt was refused: .* took more than 20 seconds"),
        runner.run(import_source, {"weights": weights, "options": options}, reads=[weights]),
    ):
        pass


@pytest.mark.slow
def test_the_jobs_themselves_never_load_torch(trained: Trained, tmp_path: Path, pictures: Path) -> None:
    """Who has the secrets and the network has nothing that could open weights."""
    weights, _ = weights_of("torchscript", tmp_path)
    arguments = import_weights.Arguments(
        family="torchscript", group="footwear", labels="boot,shoe", img_size=(32, 32), weights=str(weights),
        pictures=pictures,
    )  # fmt: skip
    code = f"""
import sys
from pathlib import Path
from conversion_jobs import export_onnx, import_weights, verify_onnx
from jobkit.job import Context
context = Context(Path({str(tmp_path)!r}), None)
found = import_weights.run(import_weights.Arguments.model_validate_json({arguments.model_dump_json()!r}), context)
export_onnx.run(export_onnx.Arguments(experiment=found.experiment), context)
verify_onnx.run(verify_onnx.Arguments(experiment=found.experiment, snapshot_id=found.snapshot_id), context)
print("torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=patience(120)
    )
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "link.bin"])
def test_a_graph_whose_weights_are_a_file_of_the_host_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    folder = tmp_path / "graphs"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret")
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4], data_location="EXTERNAL")
    tensor.external_data.add(key="location", value=location)
    node = onnx.helper.make_node("Constant", [], ["output"], value=tensor)
    inputs = [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [None, 4])]
    outputs = [onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, [4])]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "graph", inputs, outputs))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DataValidationError, match=f"in '{location}', which is not in its folder"):
        read_graph(folder / "model.onnx")
