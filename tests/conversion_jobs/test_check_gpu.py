"""The first run on a GPU worker, against a double of trtexec: it shows that the check looks, not what a T4 answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from conversion_jobs import check_gpu
from jobkit.errors import ConfigurationError
from jobkit.job import Context
from tests.support.trtexec_double import install


def check(folder: Path, version: int, **double: object) -> check_gpu.Result:
    trtexec, nvidia_smi = install(folder / "bin", version, **double)
    arguments = check_gpu.Arguments(trtexec=str(trtexec), nvidia_smi=str(nvidia_smi))
    return check_gpu.run(arguments, Context(folder, None))


def test_a_worker_that_is_as_it_should_be_passes(tmp_path: Path) -> None:
    result = check(tmp_path, 110100)
    assert (result.gpu, result.tensorrt) == ("Tesla T4", "11.1.0.106")
    assert result.precisions == ["fp32", "mixed", "fp16"]


def test_another_gpu_another_tensorrt_and_a_gpu_that_does_not_work_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"the plans are for compute 7\.5: this is another GPU"):
        check(tmp_path, 110100, gpu="NVIDIA A10, 8.6, 580.65.06, 23028")
    with pytest.raises(ConfigurationError, match=r"the serving Triton has TensorRT 11\.1\.0\.106"):
        check(tmp_path, 101300)
    with pytest.raises(ConfigurationError, match="no usable GPU"):
        check(tmp_path, 110100, fault="no_gpu")
