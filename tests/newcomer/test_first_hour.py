"""The first hour of somebody who has the README and nothing else, in its order; no test here is quick."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import psutil
import pytest

from local import processes
from local.settings import PREFERRED_PORTS, port_variable
from tests.newcomer.conftest import FirstRun, Newcomer, make_clone
from tests.support import browser
from tests.support.browser import Page
from tests.support.documents import quoted, table

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("postgres", "triton", "collect", "model_storage", "mlflow", "airflow")
START_SECONDS = 120
TRITON = "http://127.0.0.1:8100"

ELSEWHERE = {
    "make run": "first_run",
    "make test": "the tests do not run themselves",
    "make test-all": "the tests do not run themselves",
    "make import FROM=/photos/shoes GROUP=footwear": "tests/services/collect runs what it runs",
    "make new-pipeline NAME=footwear": "tests/local/test_new_pipeline.py",
    'make test PART=jobs ARGS="-k gate"': "the tests do not run themselves",
    "make run ARGS=--force": "a second training; tests/e2e trains as often as it needs to",
    "make lint": "tests/house does the same",
    "make format": "tests/house looks at the format of every file",
    "make lock": "it needs a package index; tests/house/test_locks.py checks what it made",
    "make check-gpu": "it needs a GPU and a container engine",
    "make down": "test_without_rights.py",
    "make clean": "it would remove what the other tests need",
}
BLOCKS_ELSEWHERE = {
    "make up\neval": "tests/compatibility/test_readme_fine_tuning.py runs each line of it",
    "make import": "tests/services/collect and tests/local/test_new_pipeline.py run what it runs",
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
    return [command for row in table("README.md", "what you want") for command in quoted(row[1])]


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
        "make up": (command, "everything is up already"),
        "make status": (command, "healthy"),
        'eval "$(make env)"': (f".venv/jobs/bin/python -m {evaluated}", '"version": "0.0'),
        "make predict MODEL=digits PICTURE=7.png": (command, "7.png: "),
        ".venv/jobs/bin/python -m training_jobs.evaluate --help": (command, "--snapshot_id"),
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
        if block.startswith(beginning):
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
        raise AssertionError("a block that nobody tries")


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


def test_a_picture_that_is_dropped_on_try_it_is_answered_beside_it(page: Page, up: Newcomer, digit: Path) -> None:
    long_name = digit.with_name("a-picture-whose-name-is-longer-than-the-field-that-it-is-dropped-on" * 2 + ".png")
    page.open(f"{up.settings.url('airflow')}/nightshift/")
    center = "(({x, y, width, height}) => [x + width / 2, y + height / 2])"
    page.wait_for("document.querySelector('.drop')", "the field to drop a picture on")
    page.evaluate("document.querySelector('.drop').scrollIntoView()")
    at = page.wait_for(f"{center}(document.querySelector('.drop').getBoundingClientRect())", "its place")
    page.drop(Path(shutil.copy(digit, long_name)), *at)
    said = page.wait_for("document.querySelector('.answer dt.first')?.innerText", "the champion's answer")
    assert said == label(up.sees("make", "--silent", "predict", "MODEL=digits", f"PICTURE={digit}"))
    right, left = (
        page.evaluate(f"document.querySelector('{part}').getBoundingClientRect().{side}")
        for part, side in ((".drop", "right"), (".answer", "left"))
    )
    assert right <= left, "the long name pushes the field over the answer"


def first_process(newcomer: Newcomer, name: str) -> psutil.Process:
    """Return the process of a part that started first, which is its server."""
    found = processes.of_stack(newcomer.settings.state, name, with_jobs=False)
    return min(found, key=lambda process: (process.create_time(), process.pid))


def servers(newcomer: Newcomer) -> dict[str, int]:
    """Return the number of each part's first process."""
    return {name: first_process(newcomer, name).pid for name in PARTS}
