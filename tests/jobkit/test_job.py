"""The job contract: command line in; log lines, exit code and result.json out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import Field

from jobkit import job
from jobkit.errors import ConfigurationError
from nightshift_common.patience import patience

ROOT = Path(__file__).resolve().parents[2]

EXAMPLE = """
import os, sys, time
from pydantic import Field
from jobkit import job
from jobkit.errors import ConfigurationError, DataValidationError, TransientError

class Arguments(job.Arguments):
    '''Do something.'''
    how: str = Field(description="how to end")
    epochs: int = Field(3, ge=1, description="how often")

class Result(job.Result):
    epochs: int

def run(arguments, context):
    ends = {"configuration": ConfigurationError, "data": DataValidationError}
    ends |= {"later": TransientError, "crash": KeyError}
    if arguments.how in ends:
        raise ends[arguments.how]("what happened")
    if arguments.how == "memory":
        raise MemoryError
    if arguments.how == "hang":
        print("hanging", flush=True)
        time.sleep(60)
    result = Result(epochs=arguments.epochs)
    if arguments.how == "stop":
        result.stop_here = job.StopHere(outcome="nothing_new", reason="nothing is new")
    return result

if __name__ == "__main__":
    job.main(Arguments, run)
"""


@pytest.fixture
def example(tmp_path: Path) -> Path:
    path = tmp_path / "example.py"
    path.write_text(EXAMPLE)
    return path


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "NIGHTSHIFT_JOB_DIR": str(tmp_path / "job")}


def run(example: Path, *options: str) -> tuple[int, list[dict[str, object]], Path]:
    done = subprocess.run(
        [sys.executable, str(example), *options], env=environment(example.parent), capture_output=True, text=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, lines, example.parent / "job" / "result.json"


def test_a_job_that_ends_well_leaves_a_result_and_exits_with_0(example: Path) -> None:
    code, lines, result = run(example, "--how", "well", "--epochs", "5")
    assert code == 0
    content = json.loads(result.read_text())
    assert content["result"] == {"epochs": 5, "stop_here": None}
    assert content["seconds"] >= 0
    assert lines[-1]["event"] == "done"


def test_a_result_may_say_that_the_rest_has_nothing_to_do(example: Path) -> None:
    _, _, result = run(example, "--how", "stop")
    stop = json.loads(result.read_text())["result"]["stop_here"]
    assert stop == {"outcome": "nothing_new", "reason": "nothing is new"}


@pytest.mark.parametrize(
    ("how", "code"), [("configuration", 2), ("data", 3), ("later", 75), ("crash", 1), ("memory", 1)]
)
def test_each_kind_of_error_has_its_exit_code_and_leaves_no_result(example: Path, how: str, code: int) -> None:
    ended, lines, result = run(example, "--how", how)
    assert ended == code
    assert not result.exists()
    assert lines[-1]["event"] == "error"
    assert lines[-1]["exit_code"] == code
    if how not in ("crash", "memory"):
        assert "what happened" in str(lines[-1]["message"])
        assert "exception" not in lines[-1], "a typed error explains itself: a traceback would bury it"
    else:
        assert "Traceback" in str(lines[-1]["exception"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--how", "well", "--epochs", "0"), "--epochs"),
        (("--how", "well", "--epochs", "many"), "--epochs"),
        ((), "--how"),
        (("--how", "well", "--color", "red"), "color"),
        (("--how", "well", "extra"), "extra"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_names_the_option(
    example: Path, options: tuple[str, ...], named: str
) -> None:
    code, lines, result = run(example, *options)
    assert code == 2
    assert named in str(lines[-1]["message"])
    assert not result.exists()


def test_help_lists_every_option_with_its_description(example: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(example), "--help"], env=environment(example.parent), capture_output=True, text=True
    )
    assert done.returncode == 0
    for text in ("Do something.", "--how", "how to end", "--epochs", "how often", "default: 3"):
        assert text in done.stdout


def test_sigterm_ends_a_job_as_killed_without_a_result(example: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(example), "--how", "hang"],
        env=environment(example.parent),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "hanging"
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(patience(10)) == 128 + signal.SIGTERM
    assert time.monotonic() - started < patience(5)
    assert not (example.parent / "job" / "result.json").exists()


def test_broken_labels_are_a_configuration_error(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_TASK_INSTANCE", '{"dag_id": "d"}')
    code, lines, _ = run(example, "--how", "well")
    assert code == 2
    assert "NIGHTSHIFT_TASK_INSTANCE" in str(lines[-1]["message"])


class Options(job.Arguments):
    """Options of all kinds."""

    name: str
    snapshot_id: str | None = Field(None, description="optional")
    force: bool = Field(False, description="flag")
    modes: list[str] = Field(["A", "B"], description="list")
    states: dict[str, str] = Field({}, description="object")


def test_options_read_what_the_launcher_writes() -> None:
    parsed = job.parse(
        Options, ["--name", "x", "--force", "--modes", '["A", "C"]', "--states", '{"train": "failed", "a b": "x"}']
    )
    assert (parsed.force, parsed.modes, parsed.states) == (True, ["A", "C"], {"train": "failed", "a b": "x"})
    assert job.parse(Options, ["--name", "x", "--no-force"]).force is False


@pytest.mark.parametrize("text", ["0123456789012345", "1e10", "true", "a,b", "with space", "ж"])
def test_a_text_option_keeps_its_text_whatever_it_looks_like(text: str) -> None:
    parsed = job.parse(Options, ["--name", text, "--snapshot_id", text])
    assert (parsed.name, parsed.snapshot_id) == (text, text)


def test_an_empty_optional_option_counts_as_not_given() -> None:
    assert job.parse(Options, ["--name", "x", "--snapshot_id", ""]).snapshot_id is None


def test_a_job_reads_no_option_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "from the environment")
    with pytest.raises(ConfigurationError, match="--name"):
        job.parse(Options, [])


def test_the_foundation_loads_no_heavy_library() -> None:
    check = (
        "import sys; import jobkit.job, jobkit.snapshot, jobkit.bottle, jobkit.tracking, jobkit.database;"
        "print([m for m in ('torch', 'mlflow', 'boto3', 'psycopg2', 'numpy', 'requests') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
