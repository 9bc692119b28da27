"""The page docs/jobs.md, made from the jobs themselves: `python -m jobkit.reference`.

A test compares the page with what this prints, so that it cannot fall behind.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from jobkit import job

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "jobs.md"
HEAD = """# Jobs

Each job is a command, `python -m <module> --option value …`, that Airflow runs and that a person can run too; `--help`
says the same as this page. What the options have in common with a pipeline file stands once, in
`nightshift_common/options/`. The result is what the next tasks get (XCom), as `result.json`; every result may also have
`stop_here`, which skips the tasks that follow: a normal outcome.

This page is made by `.venv/jobs/bin/python -m jobkit.reference`.
"""
PACKAGES = {"training_jobs": "Data, training, judgment", "conversion_jobs": "Conversion and release"}


def modules(package: str) -> Iterator[Any]:
    """Yield the modules at the top of a package that are jobs."""
    for path in sorted((ROOT / package).glob("*.py")):
        module = importlib.import_module(f"{package}.{path.stem}") if path.stem != "__init__" else None
        if module is not None and isinstance(getattr(module, "Arguments", None), type):
            yield module


def page() -> str:
    """Return the page."""
    lines = [HEAD]
    for package, title in PACKAGES.items():
        lines += [f"## {title}", ""]
        for module in modules(package):
            arguments, result = module.Arguments, module.Result
            lines += [
                f"### `{module.__name__}`",
                "",
                cleandoc(arguments.__doc__ or "").split("\nKeys of")[0].strip(),
                "",
            ]
            lines += ["| option | default | meaning |", "|---|---|---|", *_options(arguments), ""]
            fields = [f"`{name}`" for name in result.model_fields if name not in job.Result.model_fields]
            lines += [f"Result: {', '.join(fields) or 'nothing but the common fields'}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _options(arguments: type[BaseModel]) -> Iterator[str]:
    for name, field in arguments.model_fields.items():
        if field.is_required():
            default = "**required**"
        else:
            value = field.get_default(call_default_factory=True)
            default = "none" if value is None or value is PydanticUndefined or value == "" else f"`{_shown(value)}`"
        meaning = " ".join((field.description or "").split()).replace("|", "\\|").replace("<", "\\<")
        yield f"| `--{name}` | {default} | {meaning} |"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(list(value) if isinstance(value, tuple) else value)


if __name__ == "__main__":
    sys.stdout.write(page())
