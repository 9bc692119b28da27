"""What is special to jobs as containers, on a real engine; test_docker_conformance.py has what every launcher does."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import docker
import pytest

from nightshift.errors import JobConfigurationError, JobTransientError
from nightshift.launchers.base import Status, command_options
from nightshift.launchers.docker.settings import DockerSettings
from nightshift_common.task_instance import TaskInstanceKey
from tests.containers.conftest import ROOT, Bench
from tests.containers.own_engine import own_engine
from tests.support.waiting import wait_for

pytestmark = pytest.mark.container


def container(bench: Bench, job: str) -> Any:
    return bench.launcher.client.containers.get(job.rpartition("/")[2])


def ran(bench: Bench) -> None:
    wait_for((bench.marks / "ran").exists, "the job")


def test_a_job_without_enough_memory_says_so_and_names_the_setting(bench: Bench) -> None:
    (bench.marks / "eats.py").write_text("x = bytearray(900 << 20)\nx[::4096] = x[::4096]\n")
    job = bench.launcher.start(bench.spec(module="jobs_for_tests", options=[]))
    list(bench.launcher.follow_logs(job))  # no such main module: an ordinary failure is not taken for a lack of memory
    assert "memory" not in bench.launcher.ended(job).describe()
    greedy = bench.with_settings(volumes=(f"{bench.marks}:/opt/nightshift/eats",), images={"eats": _image(bench)})
    job = greedy.start(bench.spec(module="eats.eats", options=[]))
    list(greedy.follow_logs(job))
    assert greedy.ended(job).exit_code == 137
    assert "512m" in greedy.ended(job).describe() and "NIGHTSHIFT_JOB_MEMORY" in greedy.ended(job).describe()


def _image(bench: Bench) -> str:
    return bench.launcher.settings.images["jobs_for_tests"]


def test_a_container_that_was_never_started_is_not_taken_for_a_job(bench: Bench) -> None:
    job = bench.launcher.start(bench.spec())
    list(bench.launcher.follow_logs(job))
    made = container(bench, job)
    made_again = bench.launcher.client.containers.create(_image(bench), labels=made.labels)
    assert bench.launcher.find(bench.task_instance) == job
    assert bench.launcher.status(f"{bench.launcher.host}/{made_again.name}") is Status.FAILED


def test_a_job_that_ends_on_sigterm_is_not_waited_for_longer(bench: Bench) -> None:
    job = bench.launcher.start(bench.spec("wait"))
    ran(bench)
    started = time.monotonic()
    bench.launcher.stop(job)
    assert time.monotonic() - started < 2.5
    assert bench.launcher.ended(job).exit_code == 143


def test_a_container_that_was_removed_has_failed(bench: Bench) -> None:
    job = bench.launcher.start(bench.spec("wait"))
    ran(bench)
    container(bench, job).remove(force=True, v=True)
    assert bench.launcher.status(job) is Status.FAILED
    assert "gone" in bench.launcher.ended(job).describe()
    assert bench.launcher.result(job) is None
    assert list(bench.launcher.follow_logs(job)) == []
    bench.launcher.stop(job)


def test_a_job_can_do_little_to_its_host(bench: Bench) -> None:
    (bench.marks / "tries.py").write_text(
        "import os, pathlib\n"
        "def can(path):\n"
        "  try: pathlib.Path(path).write_text('x'); return True\n"
        "  except OSError: return False\n"
        "caps = [l.split()[1] for l in open('/proc/self/status') if l.startswith(('CapEff', 'NoNewPrivs'))]\n"
        "print(os.getuid(), can('/opt/nightshift/x'), can('/etc/x'), can('/job/x'), can('/tmp/x'),"
        " os.path.exists('/var/run/docker.sock'), *caps)"
    )
    launcher = bench.with_settings(volumes=(f"{bench.marks}:/opt/nightshift/tries",), images={"tries": _image(bench)})
    job = launcher.start(bench.spec(module="tries.tries", options=[]))
    assert list(launcher.follow_logs(job)) == ["10001 False False True True False 0000000000000000 1"]


def test_the_engine_is_asked_for_no_more_than_a_proxy_has_to_pass_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[str] = set()
    original = docker.APIClient._url

    def recorded(self: Any, path: str, *rest: Any, **options: Any) -> str:
        asked.add(path.split("/")[1])
        return str(original(self, path, *rest, **options))

    monkeypatch.setattr(docker.APIClient, "_url", recorded)
    launcher = bench.with_settings(keep_seconds=0)
    for how in ("succeed", "wait"):
        job = launcher.start(bench.spec(how))
        launcher.find(bench.task_instance)
        if how == "wait":
            launcher.stop(job)
        list(launcher.follow_logs(job))
        launcher.ended(job)
        launcher.result(job)
    documented = (ROOT / "docs" / "gpu-workers.md").read_text().partition("a socket proxy** that passes on only ")[2]
    paths = set(re.findall(r"`/([a-z]+)`", documented.partition("with")[0]))
    assert {"containers", "images", "info"} <= asked <= paths


def test_an_image_that_is_nowhere_is_refused_with_what_to_do(bench: Bench) -> None:
    with pytest.raises(
        (JobConfigurationError, JobTransientError), match=r"no-such-image:dev is not on the host .*docker/build"
    ):
        bench.launcher.start(bench.spec(module="missing.job"))
    with pytest.raises(
        JobConfigurationError, match=r"no image is named for other\.job.*images for jobs_for_tests, missing"
    ):
        bench.launcher.start(bench.spec(module="other.job"))
    assert bench.launcher.find(bench.task_instance) is None


def test_a_gpu_on_a_host_without_one_is_refused_before_anything_starts(bench: Bench) -> None:
    launcher = bench.with_settings(gpus=("0",))
    if "nvidia" in launcher.client.info()["Runtimes"]:
        pytest.skip("this host has the NVIDIA container toolkit")
    before = {c.id for c in launcher.client.containers.list(all=True)}
    with pytest.raises(JobConfigurationError, match=r"NVIDIA container toolkit.*docs/gpu-workers\.md"):
        launcher.start(bench.spec())
    assert launcher.find(bench.task_instance) is None
    assert {c.id for c in launcher.client.containers.list(all=True)} == before  # nor is the check's container left


def test_leftovers_are_reaped_when_the_next_job_starts(bench: Bench) -> None:
    left = bench.launcher.start(bench.spec("wait"))
    ran(bench)
    ended = bench.launcher.start(
        bench.spec(task_instance=TaskInstanceKey(**{**bench.task_instance.to_dict(), "task_id": "ended"}))
    )
    list(bench.launcher.follow_logs(ended))
    volume = next(m["Name"] for m in container(bench, ended).attrs["Mounts"] if m["Destination"] == "/job")
    bench.launcher.reap()
    assert bench.launcher.status(left) is Status.RUNNING  # its task runs: it is waited for
    assert bench.launcher.status(ended) is Status.SUCCEEDED  # fresh: kept for a look
    bench.states[bench.task_instance.run_id] = "failed"
    bench.with_settings(keep_seconds=0).start(
        bench.spec(task_instance=TaskInstanceKey(**{**bench.task_instance.to_dict(), "task_id": "next"}))
    )
    assert bench.launcher.status(left) is Status.FAILED
    with pytest.raises(docker.errors.NotFound):
        container(bench, ended)
    with pytest.raises(docker.errors.NotFound):
        bench.launcher.client.volumes.get(volume)


def test_a_job_of_another_host_is_not_started_a_second_time(bench: Bench) -> None:
    job = bench.launcher.start(bench.spec("wait"))
    elsewhere = "gpu-7/" + job.rpartition("/")[2]
    with pytest.raises(JobTransientError, match=r"runs on the host gpu-7.*NIGHTSHIFT_JOB_HOSTS"):
        bench.launcher.status(elsewhere)
    known = bench.with_settings(hosts={"gpu-7": "unix:///var/run/docker.sock"})
    assert known.status(elsewhere) is Status.RUNNING  # by that host's engine
    known.stop(elsewhere)
    assert known.status(elsewhere) is Status.FAILED


WAITS = """
import pathlib, time
print("up", flush=True)
while not pathlib.Path("/waits/go").exists(): time.sleep(0.05)
pathlib.Path("/job/result.json").write_text('{"result": {}}')
print("done")
"""


def test_a_restart_of_the_engine_is_waited_for(bench: Bench) -> None:
    (bench.marks / "waits.py").write_text(WAITS)
    base = "python:3.11-slim-bookworm"
    with own_engine(base) as engine, ThreadPoolExecutor(1) as pool:
        launcher = bench.with_settings(engine.client(), volumes=(f"{bench.marks}:/waits",), images={"waits": base})
        job = launcher.start(bench.spec(module="waits.waits", options=[]))
        lines = launcher.follow_logs(job)
        assert next(lines) == "up"
        rest = pool.submit(lambda: list(lines))
        engine.kill()
        engine.start()  # it ends what ran: without live-restore no container outlives its engine
        assert rest.result(60) == []
        assert launcher.status(job) is Status.FAILED
        second = launcher.start(bench.spec(module="waits.waits", options=[]))
        (bench.marks / "go").touch()
        assert list(launcher.follow_logs(second)) == ["up", "done"]
        assert launcher.result(second) == {"result": {}}


def test_the_overhead_of_a_container_is_small(bench: Bench) -> None:
    (bench.marks / "nothing.py").write_text("")
    launcher = bench.with_settings(
        volumes=(f"{bench.marks}:/opt/nightshift/nothing",), images={"nothing": _image(bench)}
    )
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        job = launcher.start(bench.spec(module="nothing.nothing", options=[]))
        list(launcher.follow_logs(job))
        assert launcher.ended(job).succeeded
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 5, seconds  # generous: the machine may be busy; benchmarks/containers.py measures it


def test_settings_are_checked_by_name() -> None:
    from nightshift.launchers.docker.settings import from_environment

    found = from_environment(
        {
            "NIGHTSHIFT_JOB_IMAGES": '{"training_jobs": "a:1"}',
            "NIGHTSHIFT_JOB_VOLUMES": "bottle:/bottle, cache:/cache",
            "NIGHTSHIFT_JOB_GPUS": "0,1",
            "NIGHTSHIFT_JOB_NETWORK": "",
            "HOME": "/root",
        }
    )
    assert found == DockerSettings(
        images={"training_jobs": "a:1"}, volumes=("bottle:/bottle", "cache:/cache"), gpus=("0", "1")
    )
    with pytest.raises(
        JobConfigurationError, match=r"NIGHTSHIFT_JOB_IMAGES: Field required.*NIGHTSHIFT_JOB_MEMROY: Extra"
    ):
        from_environment({"NIGHTSHIFT_JOB_MEMROY": "8g"})
    with pytest.raises(JobConfigurationError, match="NIGHTSHIFT_JOB_IMAGES is not JSON"):
        from_environment({"NIGHTSHIFT_JOB_IMAGES": "a:1"})
    with pytest.raises(JobConfigurationError, match="'bottle' is not <volume or path>"):
        from_environment({"NIGHTSHIFT_JOB_IMAGES": '{"a": "a:1"}', "NIGHTSHIFT_JOB_VOLUMES": "bottle"})
    assert command_options({}) == []
