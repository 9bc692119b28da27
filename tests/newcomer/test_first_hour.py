"""The first hour of somebody who has the README and nothing else, in its order; no test here is quick."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from local import processes
from local.settings import PREFERRED_PORTS, port_variable
from tests.newcomer.conftest import FirstRun, Newcomer, make_clone
from tests.support import browser
from tests.support.browser import Page
from tests.support.documents import quoted, table
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("postgres", "triton", "collect", "model_storage", "mlflow", "airflow")
START_SECONDS = 120
TRITON = "http://127.0.0.1:8100"

ELSEWHERE = {
    'make test PART=jobs ARGS="-k gate"': "the tests do not run themselves",
    "make lint": "tests/house does the same",
    "make format": "tests/house looks at the format of every file",
    "make lock": "it needs a package index; tests/house/test_locks.py checks what it made",
    "make check-gpu": "it needs a GPU and a container engine",
    "make down": "test_down_and_clean_leave_nothing_behind",
    "make clean": "test_down_and_clean_leave_nothing_behind",
}
BLOCKS_ELSEWHERE = {
    "make test": "the tests do not run themselves",
    "make up\nexport PATH": "tests/compatibility/test_readme_fine_tuning.py runs each line of it",
    "dags/": "a list of folders",
}


def blocks() -> list[tuple[str, str]]:
    """Return the code blocks of the README: their heading and their text."""
    found = []
    for section in re.split(r"^## ", (ROOT / "README.md").read_text(), flags=re.MULTILINE):
        heading = section.partition("\n")[0]
        found += [(heading, text) for text in re.findall(r"^```\w*\n(.*?)^```", section, re.DOTALL | re.MULTILINE)]
    return found


def commands() -> list[str]:
    """Return the commands of the README's table."""
    return [command for row in table("README.md", "command") for command in quoted(row[0])]


def label(said: str) -> str:
    """Return the digit that an answer begins with."""
    found = re.search(r"^(?:.*: )?'?(\d)'?(?: \(version|: \d)", said, re.MULTILINE)
    assert found, said
    return found[1]


def test_make_run_serves_a_model_and_tells_where_to_look(first_run: FirstRun, newcomer: Newcomer) -> None:
    assert re.search(r"Triton says +\S+ is '\d' with [\d.]+%, truth: '\d', version 0\.0\.1", first_run.text)
    assert "login admin, password" in first_run.text and str(newcomer.clone) in first_run.text
    assert set(first_run.states) == set(PARTS)
    assert all(state.startswith("healthy") for state in first_run.states.values()), first_run.states


def test_ctrl_c_says_what_it_waits_for_and_leaves_nothing(first_run: FirstRun) -> None:
    assert "stopping …" in first_run.after_ctrl_c and "everything is stopped" in first_run.after_ctrl_c
    assert "waiting for " in first_run.after_ctrl_c, first_run.after_ctrl_c
    assert "Traceback" not in first_run.after_ctrl_c
    assert first_run.left == []


def test_the_exit_code_of_a_stopped_stack_reaches_the_shell(first_run: FirstRun, newcomer: Newcomer) -> None:
    said = newcomer.sees("./nightshift", "status", code=3)
    assert said.count("stopped") == len(PARTS)
    assert newcomer.sees("./nightshift", "down").strip() == "nothing is running"
    assert "say which model" in newcomer.sees("./nightshift", "predict", code=1)
    assert newcomer.types("./nightshift", "no-such-command").returncode == 2


def test_ports_are_remembered(up: Newcomer, first_run: FirstRun) -> None:
    assert {name: state.split()[-1] for name, state in up.states().items()} == {
        name: state.split()[-1] for name, state in first_run.states.items()
    }
    assert "airflow" in up.sees("./nightshift", "status")


def test_a_second_clone_touches_nothing_of_the_first(up: Newcomer, tmp_path: Path) -> None:
    other = Newcomer(make_clone(tmp_path), up.environment)
    before = servers(up)
    its_ports = {port_variable(name): str(up.settings.port(name)) for name in PREFERRED_PORTS}
    assert other.sees("./nightshift", "status", code=3, **its_ports).count("stopped") == len(PARTS)
    for command in ("down", "clean"):
        assert "nothing is running" in other.sees("./nightshift", command, **its_ports)
    said = other.sees("./nightshift", "up", code=1, **its_ports)
    assert re.search(r"port \d+, wanted by \w+, is taken by .+ \(pid \d+\)", said), said
    assert processes.of_stack(other.settings.state) == []
    assert servers(up) == before
    assert all(state.startswith("healthy") for state in up.states().values())


def test_run_on_a_running_stack_leaves_it_running(up: Newcomer) -> None:
    before = servers(up)
    said = up.sees("make", "run", "ARGS=--once")
    assert "everything is up already" in said and "nothing new" in said.lower(), said
    assert servers(up) == before


@pytest.mark.parametrize("command", commands())
def test_each_command_of_the_table_does_what_it_says(command: str, up: Newcomer, digit: Path) -> None:
    if command in ELSEWHERE:
        pytest.skip(ELSEWHERE[command])
    evaluated = "conversion_jobs.predict --model_name digits --picture 7.png"
    does = {
        "make run ARGS=--once": (command, "Triton says"),
        "make run ARGS=--force": (command, "gate"),
        "make up": (command, "everything is up already"),
        "make status": (command, "healthy"),
        'eval "$(make env)"': (f".venv/jobs/bin/python -m {evaluated}", '"version": "0.0'),
        "make predict MODEL=digits PICTURE=7.png": (command, "7.png: "),
    }
    assert command in does, "a command that nobody tries"
    typed, says = does[command]
    said = up.sees("bash", "-c", typed if typed == command else f"set -e\n{command}\n{typed}")
    assert says in said, said
    assert up.serves("airflow")


@pytest.mark.parametrize(("heading", "block"), blocks(), ids=lambda text: re.sub(r"\W+", " ", text)[:40])
def test_each_block_of_the_readme_works_as_it_stands(
    heading: str, block: str, up: Newcomer, digit: Path, first_run: FirstRun, tmp_path: Path
) -> None:
    for beginning, reason in BLOCKS_ELSEWHERE.items():
        if block.startswith(beginning) and (beginning != "make test" or block.strip() == beginning):
            pytest.skip(reason)
    if block == "make run\n":
        assert "Triton says" in first_run.text
        return
    predicted = label(up.sees("make", "--silent", "predict", "MODEL=digits", f"PICTURE={digit}"))
    here = block.replace(TRITON, up.settings.url("triton"))
    if block.startswith("echo"):
        said = up.sees("bash", "-c", here)
        assert f'"name":"labels","datatype":"BYTES","shape":[1,5],"data":["{predicted}"' in said, said
    elif block.startswith("import base64"):
        assert label(up.sees("python3.11", "-c", here)) == predicted
    else:
        assert block.startswith("make import FROM=/photos/shoes GROUP=footwear"), "a block that nobody tries"
        photographs = make_photographs(tmp_path / "my photos" / "shoes")
        said = up.sees("bash", "-c", "set -e\n" + here.replace("/photos/shoes", shlex.quote(str(photographs))))
        assert "boots" in said and "wrote configs/pipelines/footwear.yaml" in said
        assert "Triton says" in said and "retrain_footwear" in said, said


def make_photographs(folder: Path) -> Path:
    """Make pictures of two kinds of shoes, as far as a network of one's first hour can tell them apart."""
    generator = np.random.default_rng(5)
    for channel, name in ((0, "boots"), (2, "sandals")):
        for number in range(60):
            picture = generator.integers(0, 120, (8, 10, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            picture[..., channel] += 120
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / name / f"{number}.jpg")
    return folder


@pytest.fixture(scope="module")
def page(up: Newcomer, folder: Path) -> Page:
    """A browser, signed in to Airflow."""
    program = browser.program()
    if program is None:
        pytest.skip(f"there is no browser on this machine: none of {', '.join(browser.PROGRAMS)}")
    with browser.open_page(program, folder) as found:
        found.open(up.settings.url("airflow"))
        found.type("input[name=username]", "admin")
        found.type("input[name=password]", up.settings.secrets["airflow_admin"])
        found.evaluate("document.querySelector('button[type=submit]').click()")
        found.wait_for("document.body.innerText.includes('Dags')", "Airflow's first page")
        yield found


def test_a_browser_shows_the_dag_of_the_digits(page: Page, up: Newcomer) -> None:
    page.open(f"{up.settings.url('airflow')}/dags")
    page.wait_for("document.body.innerText.includes('retrain_digits')", "the DAG in the list")


def test_a_picture_dropped_on_the_page_nightshift_is_answered(page: Page, up: Newcomer, digit: Path) -> None:
    predicted = label(up.sees("make", "--silent", "predict", "MODEL=digits", f"PICTURE={digit}"))
    page.open(up.settings.url("airflow"))
    page.wait_for("!!document.querySelector('a[href*=nightshift], button[aria-label*=Nightshift]')", "the link to it")
    page.open(f"{up.settings.url('airflow')}/plugin/nightshift")
    inside = "document.querySelector('iframe').contentDocument"
    page.wait_for(f"{inside}.querySelector('.drop')", "the place to drop a picture on")
    assert "digits" in page.evaluate(f"{inside}.body.innerText")
    page.evaluate(f"{inside}.querySelector('.drop').scrollIntoView()")
    x, y = page.evaluate(
        f"(() => {{ const f = document.querySelector('iframe').getBoundingClientRect(),"
        f" d = {inside}.querySelector('.drop').getBoundingClientRect();"
        " return [f.x + d.x + d.width / 2, f.y + d.y + d.height / 2]; })()"
    )
    page.drop(digit, x, y)
    said = page.wait_for(
        f"{inside}.querySelector('#answers').innerText.includes('%') && {inside}.querySelector('#answers').innerText",
        "the champion's answer",
    )
    assert re.search(rf"\b{predicted}\b", said), said


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_is_killed_serves_again_and_status_says_so(name: str, up: Newcomer) -> None:
    killed = first_process(up, name)
    killed.kill()

    def is_back() -> bool:
        states = up.states()
        told = states.get(name, "").startswith("healthy (started again") and "terminated by SIGKILL" in states[name]
        return told and all(state.startswith("healthy") for state in states.values())

    wait_for(is_back, f"{name} to serve again", START_SECONDS)
    assert not killed.is_running() and first_process(up, name).pid != killed.pid


def test_the_model_answers_after_all_that(up: Newcomer, digit: Path) -> None:
    ask: Callable[[], bool] = lambda: up.types("make", "predict", "MODEL=digits", f"PICTURE={digit}").returncode == 0  # noqa: E731
    wait_for(ask, "an answer", START_SECONDS)


def test_down_and_clean_leave_nothing_behind(up: Newcomer) -> None:
    state = up.settings.state
    assert "everything is stopped" in up.sees("make", "down")
    assert processes.of_stack(state) == []
    assert up.sees("./nightshift", "status", code=3).count("stopped") == len(PARTS)
    up.sees("make", "clean")
    assert not state.exists() and not (up.clone / ".venv").exists()
    assert "nothing is installed yet: make run" in up.sees("./nightshift", "status", code=3)
    assert "nothing is running" in up.sees("make", "down")


def first_process(newcomer: Newcomer, name: str) -> psutil.Process:
    """Return the process of a part that started first, which is its server."""
    found = processes.of_stack(newcomer.settings.state, name, with_jobs=False)
    return min(found, key=lambda process: (process.create_time(), process.pid))


def servers(newcomer: Newcomer) -> dict[str, int]:
    """Return the number of each part's first process."""
    return {name: first_process(newcomer, name).pid for name in PARTS}
