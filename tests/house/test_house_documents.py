"""Tables that are kept by hand say what the files say: make's commands, parts of the tests, profiles."""

import re
from pathlib import Path

from tests.run import PARTS
from tests.support.documents import quoted, table

ROOT = Path(__file__).resolve().parents[2]
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_readme_tells_each_command_of_make() -> None:
    text = (ROOT / "README.md").read_text()
    told = set(re.findall(r"make ([a-z-]+)", text))
    assert told - TARGETS == set(), "commands that there are not"
    assert TARGETS - told - {"help", "benchmark"} == set(), "commands that nobody is told of"


def test_each_part_of_the_tests_has_its_row() -> None:
    rows = {quoted(row[0])[0]: (quoted(row[1])[0], quoted(row[2])) for row in table("CONTRIBUTING.md", "part")}
    assert rows == {part.name: (f".venv/{part.environment}", list(part.folders)) for part in PARTS}


def test_each_profile_of_the_cluster_has_its_row() -> None:
    profiles = set(re.findall(r"profiles: \[([\w-]+)\]", (ROOT / "docker" / "cluster.yaml").read_text()))
    assert {name for row in table("docs/gpu-workers.md", "profile") for name in quoted(row[0])} == profiles
