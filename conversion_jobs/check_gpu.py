"""The first run on a new GPU worker: does everything that plans need work here? `python -m conversion_jobs.check_gpu`.

It makes a small real model, builds plans of it in every precision, and compares them on scikit-learn's handwritten
digits. Each line of the log is one thing that was seen; the first that fails ends the check with the next step.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
from pydantic import Field

from conversion_jobs import convert2trt
from conversion_jobs.onnx.export import export_module
from conversion_jobs.tensorrt.gpu import probe_gpu
from conversion_jobs.tensorrt.trtexec import probe_trtexec
from conversion_jobs.tensorrt.version import parse_version
from jobkit import job
from jobkit.errors import ConfigurationError

logger = logging.getLogger("conversion_jobs.check_gpu")
SIDE, CLASSES = 64, 10


class Arguments(job.Arguments):
    """Check a GPU worker: driver, GPU, TensorRT, plans in every precision, their outputs and latency."""

    compute_capability: str = Field("7.5", pattern=r"^\d+\.\d$", description="of the GPU that it should be; 7.5: T4")
    serving_tensorrt: str = Field("11.1.0.106", description="version of TensorRT in the serving Triton")
    trtexec: str = Field("trtexec", description="the program")
    nvidia_smi: str = Field("nvidia-smi", description="the program")


class Result(job.Result):
    """What this worker is."""

    gpu: str
    driver: str
    tensorrt: str
    precisions: list[str]


def run(arguments: Arguments, context: job.Context) -> Result:
    """Look at everything, one after the other."""
    with tempfile.TemporaryDirectory(prefix="nightshift-check-") as folder:
        scratch = Path(folder)
        gpu = probe_gpu(arguments.nvidia_smi)
        logger.info(
            "GPU: %s, compute %s, %d MiB, driver %s", gpu.name, gpu.compute_capability, gpu.memory_mib, gpu.driver
        )
        if gpu.compute_capability != arguments.compute_capability:
            raise ConfigurationError(f"the plans are for compute {arguments.compute_capability}: this is another GPU")
        version = probe_trtexec(arguments.trtexec, scratch / "probe.log", 120).version
        logger.info("TensorRT: %s", version)
        if not parse_version(arguments.serving_tensorrt).loads_plans_of(version):
            raise ConfigurationError(
                f"the serving Triton has TensorRT {arguments.serving_tensorrt}: use the images of one month"
            )
        make_model(scratch / "model.onnx")
        np.save(scratch / "digits.npy", digits())
        for precision in ("fp32", "mixed", "fp16"):
            built = convert2trt.run(
                convert2trt.Arguments(
                    onnx=scratch / "model.onnx", plan=scratch / f"{precision}.plan", inputs=scratch / "digits.npy",
                    precision=precision, trtexec=arguments.trtexec, nvidia_smi=arguments.nvidia_smi,
                ),
                context,
            )  # fmt: skip
            for verdict in built.verdicts:
                logger.info("%s, %s: %s", precision, verdict.name, verdict.sentence)
    return Result(gpu=gpu.name, driver=gpu.driver, tensorrt=str(version), precisions=["fp32", "mixed", "fp16"])


def make_model(path: Path) -> None:
    """Write a small classifier with random weights, the same every time."""
    import torch

    from jobkit.classifier import Classifier

    torch.manual_seed(0)
    model = Classifier("test_resnet", CLASSES).eval()
    with torch.no_grad():  # answers that differ between pictures, so that the first class means something
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
        model.fc.weight.mul_(5)
    export_module(model, (3, SIDE, SIDE), path, output="logits", opset=17, metadata={})


def digits() -> np.ndarray:
    """Return 16 handwritten digits as float32 [16, 3, 64, 64] with values in 0..1."""
    from sklearn.datasets import load_digits

    pictures = load_digits().images[:16].astype(np.float32) / 16
    enlarged = pictures.repeat(SIDE // 8, axis=1).repeat(SIDE // 8, axis=2)
    return np.ascontiguousarray(np.repeat(enlarged[:, None], 3, axis=1))


if __name__ == "__main__":
    job.main(Arguments, run)
