"""A classifier's training configuration, checked where there is no timm and no OpenCV: in Airflow, when a file changes.

What is checked is the JSON Schema that `training_jobs.classifier.config_reference` makes of the model with which the
training reads the file: unknown keys, types, bounds, choices, the names of transforms and of architectures. What
keys contradict each other only the training itself knows; it says so within its first second.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

import nightshift_common
from nightshift_common.yaml_file import ConfigFile

SCHEMA = Path(nightshift_common.__file__).parent / "options" / "classifier_config.schema.json"


def check_training_config(path: Path, relative_to: Path | None = None) -> None:
    """See that the training would take a file.

    Raises:
        ConfigFileError: it would not; one line an error: `file:line: key: what is wrong, and what is valid`.
    """
    file = ConfigFile.read(path, relative_to)
    for error in _validator().iter_errors(file.content):
        for one in _leaves(error):
            _note(file, one)
    model = file.content.get("model") if isinstance(file.content, dict) else None
    name = model.get("backbone_name") if isinstance(model, dict) else None
    if isinstance(name, str) and name.partition(".")[0] not in (known := _validator().schema["architectures"]):
        near = difflib.get_close_matches(name.partition(".")[0], known, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        file.add(("model", "backbone_name"), f"timm has no architecture {name!r}{hint}")
    file.raise_if_any()


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(SCHEMA.read_text()))


def _leaves(error: ValidationError) -> Iterator[ValidationError]:
    """Yield what is wrong in the member of a union that was meant: the one of the same `type`, else the nearest."""
    if error.validator not in ("anyOf", "oneOf") or not error.context:
        yield error
        return
    members: dict[int, list[ValidationError]] = {}
    for one in error.context:
        members.setdefault(int(one.schema_path[0]), []).append(one)
    of_type = [found for found in members.values() if not any(_is_about_type(one) for one in found)]
    if error.validator == "oneOf" and not of_type:
        kinds = sorted({str(kind) for one in error.context if _is_about_type(one) for kind in _choices(one)})
        if kinds:
            error.message = f"there is no such type; valid: {', '.join(kinds)}"
        yield error
        return
    candidates = of_type or list(members.values())
    for one in max(candidates, key=lambda found: max(len(e.absolute_path) for e in found)):
        yield from _leaves(one)


def _is_about_type(error: ValidationError) -> bool:
    at_type = bool(error.path) and error.path[-1] == "type" and error.validator in ("const", "enum")
    return at_type or (error.validator == "required" and "'type'" in error.message)


def _choices(error: ValidationError) -> list[Any]:
    return [error.validator_value] if error.validator == "const" else list(error.validator_value)


def _note(file: ConfigFile, error: ValidationError) -> None:
    where = tuple(error.absolute_path)
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = sorted(error.schema.get("properties", {}))
        for key in [key for key in error.instance if key not in known]:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            file.add((*where, key), f"there is no such key; {hint}valid: {', '.join(known)}")
    else:
        file.add(where, error.message)
