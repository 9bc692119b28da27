"""What the Docker launcher decides without an engine: GPUs, their checks, and its place in a log.

What it does with real containers is in tests/containers.
"""

from __future__ import annotations

from typing import Any

import pytest
from docker.errors import APIError

from nightshift.errors import JobConfigurationError, JobTransientError
from nightshift.launchers.base import JobSpec
from nightshift.launchers.docker import gpu_selection
from nightshift.launchers.docker.container import described
from nightshift.launchers.docker.logs import follow
from nightshift.launchers.docker.settings import DockerSettings, from_environment
from nightshift.launchers.images import image_of
from nightshift_common.task_instance import TaskInstanceKey

T4 = "0, Tesla T4, 7.5, 580.95.05, 14913, 15360\n"
H200 = "0, NVIDIA H200, 9.0, 580.95.05, 142713, 143771\n"


def settings(**changes: Any) -> DockerSettings:
    return DockerSettings.model_validate({"images": {"training_jobs": "a:1"}, "gpus": ("0", "1"), **changes})


def test_each_job_gets_a_gpu_of_its_own_and_a_cpu_worker_gives_none() -> None:
    assert gpu_selection.choose(settings(), set()) == ("0",)
    assert gpu_selection.choose(settings(), {"0", ""}) == ("1",)
    with pytest.raises(JobTransientError, match=r"all GPUs of this worker \(0, 1\) have a job.*as many slots"):
        gpu_selection.choose(settings(), {"0", "1"})
    assert gpu_selection.choose(settings(gpus=()), {"0"}) == ()
    assert gpu_selection.request(()) == []
    (request,) = gpu_selection.request(["GPU-8f2a"])
    assert request["DeviceIDs"] == ["GPU-8f2a"] and "gpu" in request["Capabilities"][0]


def test_a_job_for_several_gpus_gets_them_all_or_none() -> None:
    three = settings(gpus=("0", "1", "2"))
    assert gpu_selection.choose(three, {"1"}, 2) == ("0", "2")
    with pytest.raises(JobTransientError, match=r"2 of the GPUs of this worker \(0, 1, 2\) have a job, .* asks for 2"):
        gpu_selection.choose(three, {"0", "1"}, 2)
    for gpus in ((), ("0",)):  # a mistake that no other try mends, on a worker without GPUs as well
        with pytest.raises(
            JobConfigurationError, match=r"asks for 2 GPUs, and this worker has .*train\.gpus.*train_queue"
        ):
            gpu_selection.choose(settings(gpus=gpus), set(), 2)
    (request,) = gpu_selection.request(("0", "2"))
    assert request["DeviceIDs"] == ["0", "2"]


def test_a_container_opens_weights_in_a_sandbox_unless_its_worker_says_otherwise() -> None:
    key = TaskInstanceKey(dag_id="d", run_id="r", task_id="t")
    spec = JobSpec("conversion_jobs.import_weights", [], "jobs", key, {"NIGHTSHIFT_SANDBOX": "best-effort"})
    images = {"NIGHTSHIFT_JOB_IMAGES": '{"conversion_jobs": "a:1"}'}
    for variables, policy in (({}, "require"), ({"NIGHTSHIFT_JOB_SANDBOX": "best-effort"}, "best-effort")):
        made = described(spec, "a:1", (), from_environment(images | variables))
        assert made["environment"]["NIGHTSHIFT_SANDBOX"] == policy
    with pytest.raises(JobConfigurationError, match="NIGHTSHIFT_JOB_SANDBOX"):
        from_environment(images | {"NIGHTSHIFT_JOB_SANDBOX": "off"})


@pytest.mark.parametrize(
    ("module", "runtime", "image"),
    [
        ("training_jobs.gate", "jobs", "training:1"),
        ("conversion_jobs.build_plan", "jobs", "tensorrt:1"),
        ("training_jobs.train_detector", "detection", "detection:1"),
        ("conversion_jobs.export_onnx", "detection", "detection:1"),  # which has what its weights need
        ("conversion_jobs.build_plan", "detection", "tensorrt:1"),  # trtexec is only there
    ],
)
def test_a_job_runs_in_the_image_of_its_module_or_runtime(module: str, runtime: str, image: str) -> None:
    images = {
        "training_jobs": "training:1", "conversion_jobs": "conversion:1", "conversion_jobs.build_plan": "tensorrt:1",
        "detection": "detection:1",
    }  # fmt: skip
    spec = JobSpec(module, [], runtime, TaskInstanceKey("dag", "run", "task", -1, 1))
    assert image_of(spec, images, "IMAGES") == image
    del images["detection"]
    if image == "detection:1":  # never in another image, where it would fail later and stranger
        with pytest.raises(
            JobConfigurationError, match=f"no image is named for {module} of the runtime detection; IMAG"
        ):
            image_of(spec, images, "IMAGES")


def test_a_gpu_is_described_by_what_matters() -> None:
    (gpu,) = gpu_selection.parse(T4)
    assert gpu.describe() == "Tesla T4, compute capability 7.5, driver 580.95.05, 14,913 of 15,360 MiB free"


@pytest.mark.parametrize("output", ["No devices were found", "0, Tesla T4, 7.5, 580.95.05, [GPU is lost], 15360"])
def test_a_gpu_that_cannot_be_described_is_a_trouble_for_now(output: str) -> None:
    with pytest.raises(JobTransientError, match="does not describe a GPU"):
        gpu_selection.parse(output)


def test_a_plan_is_never_built_on_another_kind_of_gpu() -> None:
    wanted = settings(gpu_compute_capability="7.5", gpu_free_mib=8192)
    gpu_selection.check(gpu_selection.parse(T4), ["0"], wanted)
    with pytest.raises(
        JobConfigurationError, match=r"for compute capability 7\.5.*NVIDIA H200, compute capability 9\.0"
    ):
        gpu_selection.check(gpu_selection.parse(H200), ["0"], wanted)
    with pytest.raises(JobConfigurationError, match="asked for GPU 0, 1, the container sees 1"):
        gpu_selection.check(gpu_selection.parse(T4), ["0", "1"], wanted)


def test_a_gpu_whose_memory_is_in_use_is_waited_for() -> None:
    full = gpu_selection.parse("0, Tesla T4, 7.5, 580.95.05, 512, 15360")
    with pytest.raises(JobTransientError, match=r"less free memory than the 8,192 MiB.*512 of 15,360 MiB free"):
        gpu_selection.check(full, ["0"], settings(gpu_free_mib=8192))


def test_a_host_without_the_toolkit_is_told_from_a_gpu_that_is_away() -> None:
    missing = APIError("x", explanation='could not select device driver "nvidia" with capabilities: [[gpu]]')
    assert isinstance(gpu_selection.refused(missing, ["0"]), JobConfigurationError)
    away = APIError("x", explanation="nvidia-container-cli: initialization error: driver rpc error: timed out")
    assert isinstance(gpu_selection.refused(away, ["0"]), JobTransientError)


class Log:
    """An engine's log API whose connections end after some frames; a stand-in, to drop them where it hurts."""

    def __init__(self, frames: list[bytes], cuts: list[int]) -> None:
        self.frames, self.cuts = frames, [*cuts, len(frames)]
        self.asked: list[int | None] = []

    def logs(self, _name: str, since: int | None = None, **_: Any) -> Any:
        self.asked.append(since)
        yield from self.frames[: self.cuts.pop(0)]
        if self.cuts:
            raise ConnectionResetError("cut")


def test_lines_of_one_nanosecond_and_parts_of_long_lines_survive_a_cut() -> None:
    stamp = "2026-11-21T04:00:00.{:09d}Z"
    texts = ["a\n", "b\n", "c\n", "x" * 10, "y" * 10 + "\n", "no end"]
    times = [1, 1, 1, 2, 2, 3]  # the engine gives the parts of a long line, and lines of one write, one time
    frames = [f"{stamp.format(t)} {text}".encode() for t, text in zip(times, texts, strict=True)]
    for cut in range(len(frames)):
        log = Log(frames, [cut])
        assert list(follow(log, "job", lambda: False)) == ["a", "b", "c", "x" * 10 + "y" * 10, "no end"], cut
        assert log.asked == [None, 1795233599 if cut else None]
