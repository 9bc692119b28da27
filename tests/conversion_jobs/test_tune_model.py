"""Tuning: the search against brute force on landscapes that are known, and one real search in a real Triton."""

from __future__ import annotations

import itertools
import json
import random
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from conversion_jobs import tune_model
from conversion_jobs.triton.model_config import parse
from conversion_jobs.triton.tuning import Axes, Measurement, Search, Settings, Tuning
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment
from local.triton import TritonServer
from tests.conversion_jobs.conftest import Trained
from tests.support.servers import free_ports
from tests.support.tiny_onnx import scaling_config, scaling_model

AXES = Axes((1, 2, 4), (None, 1, 2, 4), (1, 2, 4, None), (0, 100, 500, 2000), cores=4)
START = Settings(queue_delay_us=500)
SERVER = f"{sys.executable} -m local.tritonserver"


def measurement(throughput: float, p99: float = 10.0) -> Measurement:
    return Measurement(
        throughput=throughput, p50=p99, p90=p99, p99=p99, requests=99, compared=99, client_cpu=0.1, machine_load=0
    )


def landscape(settings: Settings) -> float:
    """A hill in each axis, its top at 2 instances, 2 threads, batches of 4 and no delay."""
    near = (
        (settings.instances, (1, 2, 4), 2), (settings.intra_op_threads, AXES.intra_op_threads, 2),
        (settings.preferred_batch_size, AXES.preferred_batch_size, 4),
        (settings.queue_delay_us, AXES.queue_delay_us, 0),
    )  # fmt: skip
    steps = [abs(list(values).index(value) - list(values).index(top)) for value, values, top in near]
    return 100.0 * float(np.prod([0.8**step for step in steps]))


def every_setting() -> list[Settings]:
    values = (getattr(AXES, name) for name in Settings.model_fields)
    made = (Settings(**dict(zip(Settings.model_fields, one, strict=True))) for one in itertools.product(*values))
    return [one for one in made if AXES.fits(one)]


def search(
    measure: Callable[[Settings], Measurement | str], limit: float = 1000, over: Callable[[], bool] = lambda: False
) -> tuple[Search, Any]:
    found = Search(AXES, limit, measure, over)
    found.run(START)
    return found, found.choose(START)


def test_the_search_finds_what_brute_force_finds_with_a_fraction_of_its_measurements() -> None:
    best = max(every_setting(), key=landscape)
    found, chosen = search(lambda settings: measurement(landscape(settings)))
    assert chosen.settings == best
    assert len(found.points) < len(every_setting()) / 4


def test_what_is_too_slow_fails_or_answers_wrongly_is_not_chosen_however_fast() -> None:
    def measure(settings: Settings) -> Measurement | str:
        if settings.instances == 4:
            return "answers otherwise than was verified"
        return measurement(landscape(settings), p99=2000 if settings.intra_op_threads == 2 else 10)

    found, chosen = search(measure)
    allowed = [one for one in every_setting() if one.instances != 4 and one.intra_op_threads != 2]
    assert landscape(chosen.settings) == max(map(landscape, allowed))
    problems = {point.settings.instances for point in found.points.values() if point.problem}
    assert problems == {4}


def test_luck_is_not_taken_for_a_gain() -> None:
    dice = random.Random(4)
    for _ in range(20):
        _, chosen = search(lambda settings: measurement(100 * dice.uniform(0.99, 1.01)))
        assert chosen.settings == START, "all settings are alike: what is there stays"


def test_a_point_that_was_fast_once_loses_where_it_is_confirmed() -> None:
    asked: dict[Settings, int] = {}

    def measure(settings: Settings) -> Measurement:
        asked[settings] = asked.get(settings, 0) + 1
        lucky = settings.instances == 4 and settings.intra_op_threads is None and asked[settings] == 1
        return measurement(1000 if lucky else landscape(settings))

    _, chosen = search(measure)
    assert chosen.settings.instances != 4
    assert landscape(chosen.settings) == max(map(landscape, every_setting()))
    assert len(chosen.confirmed) == 2


def test_the_search_keeps_to_its_budget_and_says_so() -> None:
    left = iter([False] * 3 + [True] * 100)
    found, chosen = search(lambda settings: measurement(landscape(settings)), over=lambda: next(left))
    assert len(found.points) == 4
    assert found.budget_used_up
    assert len(chosen.confirmed) == 2


def tune(trained: Trained, **options: Any) -> tune_model.Result:
    fast = {"seconds": 0.3, "budget": 1, "server": SERVER, "clients": 4}
    trained.context.directory.mkdir(exist_ok=True)
    return tune_model.run(tune_model.Arguments(experiment=trained.experiment, **fast | options), trained.context)


@pytest.mark.slow
def test_settings_that_were_measured_in_a_real_triton_are_packaged(verified: Trained) -> None:
    found = tune(verified, budget=8)
    record = Tuning.model_validate_json(verified.bottle.read(found.tuning))
    assert record.versions == {"triton": "2.51.0"} and record.machine["cores"] > 0
    assert record.points[0].settings == START and len(record.points) > 1
    for point in record.points:
        assert point.problem is None
        assert all(one.compared >= one.requests > 0 for one in point.measured), "every answer was compared"
    assert len(record.points[0].confirmed) == 2
    tuned = record.model_copy(
        update={"chosen": Settings(instances=3, intra_op_threads=2, preferred_batch_size=4, queue_delay_us=0)}
    )
    verified.bottle.write(found.tuning, tuned.model_dump_json())
    packed = verified.package(tuning=found.tuning, max_queue_size=7)
    with zipfile.ZipFile(verified.bottle.local(packed.archive)) as archive:
        config = parse(archive.read("config.pbtxt").decode())
        assert json.loads(archive.read("meta.json"))["tuning"]["instances"] == 3
        assert Tuning.model_validate_json(archive.read("tuning.json")) == tuned
    assert config.instance_group[0].count == 3
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 7


def test_answers_that_are_not_the_verified_ones_are_no_throughput(verified: Trained) -> None:
    path = verified.bottle.path(Experiment(verified.experiment).reference)
    with np.load(path) as stored:
        content = dict(stored)
    np.savez(path, **content | {"outputs": content["outputs"] + 0.1})
    with pytest.raises(DataValidationError, match="answers otherwise than was verified: the largest difference is"):
        tune(verified)


def test_a_limit_that_nothing_keeps_is_said_with_the_lowest_latency(verified: Trained) -> None:
    with pytest.raises(DataValidationError, match=r"within 0\.001 ms \(p99\); the lowest p99 was"):
        tune(verified, limit_ms=0.001)


def test_a_triton_that_serves_is_left_alone_and_an_empty_one_is_left_empty(verified: Trained, tmp_path: Path) -> None:
    server = TritonServer(tmp_path / "models", tmp_path / "state", *free_ports(3), log=tmp_path / "triton.log")
    model = server.repository / "champion"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.onnx").write_bytes(scaling_model(2.0))
    (model / "config.pbtxt").write_text(scaling_config("champion"))
    with server:
        server.wait_ready()
        there: dict[str, Any] = {"url": server.grpc, "key_file": str(server.key_file)}
        control = tune_model.TritonControl(server.grpc, server.key_file.read_text())
        with pytest.raises(ConfigurationError, match=r"did not list its models.*--key_file names the file"):
            tune(verified, url=server.grpc)
        assert tune(verified, **there).throughput > 0
        assert control.ready_models() == []
        control._ask("load", "load_model", "champion", headers=control._headers)
        with pytest.raises(ConfigurationError, match="serves champion: tuning would slow them down"):
            tune(verified, **there)
        assert control.ready_models() == ["champion"]


def test_a_server_that_does_not_start_is_said_with_its_log(verified: Trained) -> None:
    with pytest.raises(ConfigurationError, match="cannot be run"):
        tune(verified, server="no-such-tritonserver")
    with pytest.raises(ConfigurationError, match="ended with code 4: no GPU today"):
        tune(verified, server="sh -c 'echo no GPU today; exit 4'")


def test_settings_of_another_model_are_refused_and_said_twice_are_too(verified: Trained) -> None:
    found = tune(verified, seconds=0.2)
    record = json.loads(verified.bottle.read(found.tuning))
    verified.bottle.write("tuning.json", json.dumps(record | {"structure_sha256": "0" * 64}))
    with pytest.raises(DataValidationError, match=r"was tuned for another model .structure_sha256"):
        verified.package(tuning="tuning.json")
    with pytest.raises(ValidationError, match="tuning says what instances should be"):
        verified.package(tuning=found.tuning, instances=2)
