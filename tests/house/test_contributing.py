"""What the documents for people name is there: paths in backticks, and the targets of links."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    "convertation/README.md",
]
PAGES += [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
LISTED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
TOP = {name.partition("/")[0] for name in LISTED if "/" in name}
PLACEHOLDER = re.compile(r"[<>{}…|]")


def named(text: str) -> set[str]:
    """Return what a page names that starts with a folder of the repository; placeholders are left out."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    words = [word for span in spans for word in span.split()]
    paths = {word.partition("::")[0].strip(",;:()\"'") for word in words if not PLACEHOLDER.search(word)}
    return {path for path in paths if path.partition("/")[0] in TOP and "/" in path}


def is_there(path: str) -> bool:
    """Whether a path, or anything that a path with `*` stands for, is in the repository."""
    return any(ROOT.glob(path.rstrip("/"))) if "*" in path else (ROOT / path).exists()


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    assert sorted(path for path in named(text) if not is_there(path)) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file(page: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
    files = {target.partition("#")[0] for target in targets if "://" not in target} - {""}
    assert sorted(file for file in files if not ((ROOT / page).parent / file).exists()) == []


def test_paths_are_found_in_text_and_placeholders_are_not() -> None:
    text = "see `jobkit/no.py`, `make docker/no`, `tests/no.py::test_x`, `configs/<name>.yaml`, `no/such.py`, `a.b`"
    assert named(text) == {"jobkit/no.py", "docker/no", "tests/no.py"}
    assert not any(is_there(path) for path in named(text)) and is_there("requirements/*.in")
