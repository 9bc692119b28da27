"""The page docs/pipelines.md, made from the model that checks the files: `python -m nightshift.pipelines.reference`.

A test compares the page with what this prints, so that it cannot fall behind.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from inspect import cleandoc
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from nightshift.kinds import DEFAULT, KINDS
from nightshift.kinds.base import Pipeline

HEAD = """# Pipeline files

One file `configs/pipelines/<name>.yaml` makes one DAG, `retrain_<name>`; Airflow takes up a new or changed file within
seconds. A wrong file shows in Airflow as an import error that names file, line, key and what is valid, and touches no
other pipeline. A key that stands there twice is an error; so is a key that is not in these tables. The training
configuration that it names is looked at as well.

The shortest file that works:

```yaml
description: Footwear on white, from the collect server
owner: ml-team
schedule: "30 3 * * *" # 03:30 UTC; leave the key out to run it by hand only
data: {group: footwear}
train: {config: configs/classifier/footwear.yaml}
publish: {model_name: footwear}
```

`make new-pipeline NAME=footwear` writes it with a training configuration, both with comments. Its pictures come into
the collect server of `make up` by `make import FROM=<folder> GROUP=footwear`: a folder with a `labels.csv` (columns
`path` and `label`), else with a folder a class. It says what came of it, class by class, and how to take it back
(`make import ARGS="--undo 3"`, `ARGS=--list`).

Files in another folder than `configs/pipelines` are found where `NIGHTSHIFT_PIPELINES` names it.
Two pipelines with one `publish.model_name` are an error in both.

Epochs and batch size of the file are the defaults of the form that starts a run by hand. What makes a run's model, but
for its data, has a *fingerprint*: all that reaches pulling, preparing, training, evaluation and the gate, from the file
or from the form, and the content of the training configuration; not what only says how (`train.gpus`, pools, queues,
limits of time). A run ends early as "nothing new" if a finished run had the same snapshot and the same fingerprint.

A pipeline has a *kind*: `classification` where the file does not say it, `detection` or `segmentation`. The chain of
tasks and their names are the same for all; the kind decides what pulls, trains and evaluates, and which keys there are.

```yaml
kind: detection
description: Logos in photographs, from a COCO file in the bottle
owner: ml-team
data: {group: logos, annotations: incoming/logos/annotations.json}
publish: {model_name: logos}
```

This page is made by `PYTHONPATH=plugins:. .venv/airflow/bin/python -m nightshift.pipelines.reference`.
"""
ORDER = ("data", "train", "evaluate", "gate", "verify")
TABLE = ["| key | value | default | meaning |", "|---|---|---|---|"]


def reference() -> str:
    """Return the page."""
    lines = [HEAD, "## Top level", "", *TABLE]
    first = KINDS[DEFAULT]
    kinds = " or ".join(f"`{kind}`" for kind in KINDS)
    lines.append(f"| `kind` | {kinds} | `{DEFAULT}` | what is trained: it decides the sections below |")
    lines += [_row(name, field) for name, field in first.model_fields.items() if not _section(field) and name != "kind"]
    shared = [name for name, field in Pipeline.model_fields.items() if _section(field)]
    for kind, pipeline in KINDS.items():
        lines += ["", f"## `kind: {kind}`", "", cleandoc(pipeline.__doc__ or "")]
        own = {name: field for name, field in pipeline.model_fields.items() if name not in shared and _section(field)}
        for name in sorted(own, key=_place):
            lines += _table(name, own[name], 3)
    lines += ["", "## Sections of every kind"]
    for name in shared:
        lines += _table(name, first.model_fields[name], 3)
    return "\n".join(lines) + "\n"


def _place(name: str) -> int:
    """Return where a section stands: in the order of a night, and what only one kind has behind that."""
    return ORDER.index(name) if name in ORDER else len(ORDER)


def _table(name: str, field: FieldInfo, level: int) -> list[str]:
    model = _section(field)
    assert model is not None  # noqa: S101 - selected by the caller
    need = "required" if field.is_required() else "may be left out"
    head = ["", f"{'#' * level} `{name}` ({need})", "", cleandoc(model.__doc__ or ""), "", *TABLE]
    return head + [_row(key, value) for key, value in model.model_fields.items()]


def _section(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _row(name: str, field: FieldInfo) -> str:
    default = "**required**" if field.is_required() else f"`{_yaml(field.get_default(call_default_factory=True))}`"
    meaning = " ".join((field.description or "").split()).replace("<", "\\<")  # else Markdown takes it for HTML
    cells = [f"`{name}`", ", ".join([_kind(field.annotation), *_bounds(field)]), default, meaning]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is list:
        (item,) = get_args(annotation)
        return "list of texts" if item is str else f"list of {_kind(item)}"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    parts = [part for part in get_args(annotation) or (annotation,) if part is not type(None)]
    return names.get(parts[0], "text")


def _bounds(field: FieldInfo) -> Iterator[str]:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    for constraint in field.metadata:
        for attribute, sign in signs.items():
            if (bound := getattr(constraint, attribute, None)) is not None:
                yield f"{sign} {bound:g}"
        if pattern := getattr(constraint, "pattern", None):
            yield f"`{pattern}`"


def _yaml(value: Any) -> str:
    if value is None or value is PydanticUndefined:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.stdout.write(reference())
