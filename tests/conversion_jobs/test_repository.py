"""Weights and whole repositories from archives: checked before anything reads them, everything wrong named at once."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from conversion_jobs import assemble_repository, fetch_weights
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.job import Context
from local.triton import TritonServer
from tests.support.servers import free_ports
from tests.support.tiny_onnx import scaling_config, scaling_model

CONTEXT = Context(Path(), None)
PYTHON_CONFIG = """name: "bpr_model"
backend: "python"
max_batch_size: 8
input [{ name: "input", data_type: TYPE_FP32, dims: [4] }]
output [{ name: "output", data_type: TYPE_FP32, dims: [4] }]
instance_group [{ kind: KIND_CPU }]
"""
PYTHON_MODEL = """
import pathlib
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        folder = pathlib.Path(args["model_repository"]) / args["model_version"]
        self.shift = float((folder / "weights" / "shift.txt").read_text())

    def execute(self, requests):
        values = [pb_utils.get_input_tensor_by_name(request, "input").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("output", value + self.shift)]) for value in values]
"""


def make_repository(folder: Path) -> Path:
    """Write the users' layout: ONNX models and a Python-backend model with its weights."""
    for name, factor in (("binary_onnx", 2.0), ("vit_onnx", 3.0)):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.onnx").write_bytes(scaling_model(factor))
        (folder / name / "config.pbtxt").write_text(scaling_config(name))
    version = folder / "bpr_model" / "1"
    (version / "weights").mkdir(parents=True)
    (version / "weights" / "shift.txt").write_text("0.5")
    (version / "model.py").write_text(PYTHON_MODEL)
    (version / "requirements.txt").write_text("numpy\n")
    (version.parent / "config.pbtxt").write_text(PYTHON_CONFIG)
    return folder


def zip_of(folder: Path, archive: Path, top: str = "") -> Path:
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            opened.write(path, f"{top}{path.relative_to(folder)}")
    return archive


def assemble(repository: Path, **options: object) -> assemble_repository.Result:
    return assemble_repository.run(assemble_repository.Arguments(repository=repository, **options), CONTEXT)


@pytest.fixture
def triton(tmp_path: Path) -> Iterator[TritonServer]:
    server = TritonServer(tmp_path / "serving", tmp_path / "state", *free_ports(3), log=tmp_path / "triton.log")
    yield server
    server.stop()


def test_a_repository_from_an_archive_is_one_that_triton_serves(tmp_path: Path, triton: TritonServer) -> None:
    source = make_repository(tmp_path / "source")
    archive = zip_of(source, tmp_path / "model_repository_running.zip", top="serving/")
    result = assemble(triton.repository, archive=str(archive))
    assert result.models == ["binary_onnx", "bpr_model", "vit_onnx"]
    triton.start()
    triton.wait_ready()
    value = np.ones((2, 4), np.float32)
    with tritonclient.grpc.InferenceServerClient(triton.grpc) as client:
        for name, wanted in (("binary_onnx", 2.0), ("vit_onnx", 3.0), ("bpr_model", 1.5)):
            client.load_model(name, headers=triton.grpc_headers)
            tensor = tritonclient.grpc.InferInput("input", [2, 4], "FP32")
            tensor.set_data_from_numpy(value)
            np.testing.assert_array_equal(client.infer(name, [tensor]).as_numpy("output"), value * wanted)


def test_a_repository_is_put_together_from_files_with_configurations_that_triton_takes(
    tmp_path: Path, triton: TritonServer
) -> None:
    source = make_repository(tmp_path / "source")
    models = {"mine": source / "vit_onnx" / "1" / "model.onnx", "bpr_model": source / "bpr_model"}
    assert assemble(triton.repository, models=models).models == ["bpr_model", "mine"]
    triton.start()
    triton.wait_ready()
    with tritonclient.grpc.InferenceServerClient(triton.grpc) as client:
        client.load_model("mine", headers=triton.grpc_headers)
        client.load_model("bpr_model", headers=triton.grpc_headers)
        assert client.get_model_config("mine", as_json=True)["config"]["max_batch_size"] == 8


def test_everything_that_is_wrong_with_a_repository_is_listed_at_once(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "repository")
    (folder / "binary_onnx" / "config.pbtxt").write_text(scaling_config("binary", width=5))
    (folder / "vit_onnx" / "1" / "model.onnx").write_bytes(scaling_model(1.0)[:-20])
    (folder / "bpr_model" / "1" / "model.py").write_text("class Model: ...")
    for name, content in (("logo_trt", b"\x10\x00\x00\x00{'stride': 32}"), ("empty_trt", b"")):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.plan").write_bytes(content)
        (folder / name / "config.pbtxt").write_text(f'name: "{name}"\nplatform: "tensorrt_plan"')
    (folder / "unconfigured" / "1").mkdir(parents=True)
    (folder / "misspelt" / "1").mkdir(parents=True)
    (folder / "misspelt" / "config.pbtxt").write_text('name: "misspelt"\nmax_batchsize: 8')
    (folder / "notes.txt").touch()
    with pytest.raises(DataValidationError) as caught:
        assemble(folder)
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    expected = [
        "notes.txt: is a file; a repository has folders of models only",
        "binary_onnx/config.pbtxt: name is 'binary', the folder is 'binary_onnx'",
        "binary_onnx/1/model.onnx: input 'input' has dims [5], in the graph [4]",
        "binary_onnx/1/model.onnx: output 'output' has dims [5], in the graph [4]",
        "bpr_model/1/model.py: has no class TritonPythonModel",
        "empty_trt/1/model.plan: is empty",
        "logo_trt/1/model.plan: has Ultralytics' header",
        "misspelt/config.pbtxt: 2:1",
        "unconfigured/config.pbtxt: is missing",
        "vit_onnx/1/model.onnx: ",
    ]
    assert len(lines) == len(expected)
    assert [line for line, start in zip(lines, expected, strict=True) if not line.startswith(start)] == []


def test_an_archive_with_a_bad_repository_leaves_nothing(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "source")
    (folder / "vit_onnx" / "config.pbtxt").unlink()
    archive = zip_of(folder, tmp_path / "repository.zip")
    with pytest.raises(DataValidationError, match=r"vit_onnx/config\.pbtxt: is missing"):
        assemble(tmp_path / "out" / "model_repository_running", archive=str(archive))
    assert not list((tmp_path / "out").iterdir())


def test_a_repository_that_is_there_is_never_written_over(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "repository")
    archive = zip_of(folder, tmp_path / "repository.zip")
    with pytest.raises(ConfigurationError, match="is there already: move it away"):
        assemble(folder, archive=str(archive))
    assert assemble(folder).models == ["binary_onnx", "bpr_model", "vit_onnx"]
    with pytest.raises(ConfigurationError, match="is not there: give --archive or --models"):
        assemble(tmp_path / "nothing")


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Path, Path]:
    """An archive of weights in the users' layout, and its checksums as sha256sum writes them."""
    folder = tmp_path / "weights"
    lines = []
    for name in ("CT-RATE/model_binary.pth", "bpr/model.pt", "bpr/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 100)
        lines.append(f"{hashlib.sha256(name.encode() * 100).hexdigest()}  ./{name}\n")
    (tmp_path / "SHA256SUMS").write_text("".join(lines))
    return zip_of(folder, tmp_path / "weights.zip", top="weights/"), tmp_path / "SHA256SUMS"


def fetch(archive: Path, checksums: Path, target: Path) -> fetch_weights.Result:
    arguments = fetch_weights.Arguments(archive=str(archive), checksums=checksums, target=target)
    return fetch_weights.run(arguments, CONTEXT)


def test_weights_are_put_in_place_once_and_checked_each_time(weights: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "training" / "weights"
    assert fetch(*weights, target) == fetch_weights.Result(target=target, files=3, was_there=False)
    assert (target / "bpr" / "model.pt").is_file()
    assert fetch(*weights, target).was_there
    (target / "bpr" / "model.pt").write_bytes(b"changed")
    with pytest.raises(DataValidationError, match=r"move it away: bpr/model\.pt is .*, not "):
        fetch(*weights, target)


def test_an_archive_that_is_not_what_its_checksums_say_leaves_nothing(
    weights: tuple[Path, Path], tmp_path: Path
) -> None:
    archive, checksums = weights
    lines = checksums.read_text().splitlines()
    checksums.write_text("\n".join([lines[0].replace("binary", "other"), "0" * 64 + lines[1][64:]]))
    target = tmp_path / "training" / "weights"
    with pytest.raises(DataValidationError) as caught:
        fetch(archive, checksums, target)
    for part in ("model_other.pth is missing", "model_binary.pth is not listed", "bpr/config.json is not listed"):
        assert part in str(caught.value)
    assert f"not {'0' * 64}" in str(caught.value)
    assert not list(target.parent.iterdir())


def test_a_checksum_file_that_is_none_is_named_with_its_line(weights: tuple[Path, Path], tmp_path: Path) -> None:
    archive, checksums = weights
    checksums.write_text("not a checksum\n")
    with pytest.raises(ConfigurationError, match=r"SHA256SUMS:1 is no line of sha256sum"):
        fetch(archive, checksums, tmp_path / "target")
    shutil.move(checksums, tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="make it by `sha256sum`"):
        fetch(archive, checksums, tmp_path / "target")
