"""YAML files checked by a pydantic model: all errors at once, each with file, line and key; a repeated key is one.

Booleans are `true` and `false` only (YAML 1.2: `no` is text), numbers may be written `1e-3`, a date is text.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)
Location = tuple[str | int, ...]


class PipelineError(ValueError):
    """A pipeline file is wrong; one line an error: `file:line: key: what is valid`."""


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's booleans and floats, and without dates."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class declares it so
        first: [pair for pair in pairs if pair[0].rpartition(":")[2] not in ("bool", "float", "timestamp")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$"),
    list("-+.0123456789"),
)


class Lines:
    """Remembers the line of every key of a file, for errors that are found later."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Location, int] = {}
        self.errors: list[tuple[int, str]] = []

    def add(self, location: Location, message: str) -> None:
        """Note an error at a key; at the line of the innermost key above it where the key itself is missing."""
        known = location
        while known and known not in self.lines:
            known = known[:-1]
        key = ".".join(str(part) for part in location) or "the file"
        self.errors.append((self.lines.get(known, 1), f"{key}: {message}"))

    def raise_if_any(self) -> None:
        """Raise all errors that were noted."""
        if self.errors:
            raise PipelineError("\n".join(f"{self.name}:{line}: {text}" for line, text in sorted(set(self.errors))))

    def fail(self, location: Location, message: str) -> NoReturn:
        """Raise one error."""
        self.add(location, message)
        self.raise_if_any()
        raise AssertionError("an error was noted just above")


def load(path: Path, model: type[M], relative_to: Path) -> tuple[M, Lines]:
    """Return the file's content as `model`, and the lines of its keys.

    Raises:
        PipelineError: the file cannot be read, is no YAML, repeats a key or does not fit the model.
    """
    lines = Lines(str(path.relative_to(relative_to) if path.is_relative_to(relative_to) else path))
    content = _read(path, lines)
    value = None
    try:
        value = model.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        for item in error.errors():
            lines.add(item["loc"], _sentence(item, model))
    lines.raise_if_any()
    assert value is not None  # noqa: S101 - without errors there is a value
    return value, lines


def _read(path: Path, lines: Lines) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        for token in yaml.scan(text, yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken):  # could make a small file as large as the memory
                line = token.start_mark.line + 1
                raise PipelineError(f"{lines.name}:{line}: *{token.value}: aliases are not valid here: write it out")
        node = yaml.compose(text, Loader=_Loader)
        return _plain(node, (), lines) if node is not None else {}
    except OSError as error:
        raise PipelineError(f"{lines.name}:1: the file cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise PipelineError(f"{lines.name}:{line}: this is not UTF-8 text: {error.reason}") from error
    except RecursionError as error:
        raise PipelineError(f"{lines.name}:1: this is not YAML that can be read: it is nested too deeply") from error
    except yaml.YAMLError as error:
        mark, context = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        since = f" ({getattr(error, 'context', '')} that begins in line {context.line + 1})" if context else ""
        raise PipelineError(
            f"{lines.name}:{mark.line + 1 if mark else 1}: this is not YAML: {problem}{since}"
        ) from error


def _plain(node: yaml.Node, where: Location, lines: Lines) -> Any:
    lines.lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in found:
                first = lines.lines[(*where, key)]
                path = ".".join(str(part) for part in (*where, key))
                lines.errors.append((line, f"{path}: the key stands here again; it stands in line {first} already"))
                continue
            lines.lines[(*where, key)] = line
            found[key] = _plain(value_node, (*where, key), lines)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*where, index), lines) for index, item in enumerate(node.value)]
    return _Loader("").construct_object(node)


def _sentence(item: Any, model: type[BaseModel]) -> str:
    if item["type"] == "extra_forbidden":
        valid = _keys(model, item["loc"][:-1])
        near = difflib.get_close_matches(str(item["loc"][-1]), valid, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        return f"there is no such key{hint} Valid here: {', '.join(valid)}"
    if item["type"] == "missing":
        return "the key is missing"
    message: str = item["msg"].removeprefix("Value error, ")
    given = item.get("input")
    shown = f", not {given!r}" if isinstance(given, (str, int, float, bool)) or given is None else ""
    return f"{message[0].lower()}{message[1:]}{shown}"


def _keys(model: type[BaseModel], location: Location) -> list[str]:
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return sorted(model.model_fields)
