"""YAML configuration files, checked as a whole: every error at once, each with file, line and what is valid.

Plain YAML loaders keep the last of two equal keys silently; here a repeated key is an error. Booleans are `true` and
`false` only (YAML 1.2: `no` is text), and numbers may be written `1e-3` or `4.e-4`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from jobkit.errors import ConfigurationError

M = TypeVar("M", bound=BaseModel)
Location = tuple[str | int, ...]
_REPLACED = frozenset({"bool", "float", "timestamp"})


class WrongValues(ValueError):
    """Raised by a model's validator for values that contradict each other: where each is, below that model, and why."""

    def __init__(self, problems: Sequence[tuple[Location, str]]) -> None:
        super().__init__("; ".join(f"{_name(where)}: {text}" for where, text in problems))
        self.problems = problems


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's booleans and floats, and without dates."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"),
    list("-+.0123456789"),
)


def load(path: Path, model: type[M]) -> M:
    """Return the file's content as `model`, validated strictly (`"16"` is no number, `1` is no boolean).

    Raises:
        ConfigurationError: the file cannot be read, is no YAML, repeats a key or does not fit the model; the message
            has one line per error: `file:line: key: what is wrong`.
    """
    lines: dict[Location, int] = {}
    errors: list[tuple[int, str]] = []
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
        content = _plain(node, (), lines, errors) if node is not None else {}
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigurationError(f"{where}: this is not YAML: {getattr(error, 'problem', None) or error}") from error
    try:
        value = model.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        errors += [described for item in error.errors() for described in _describe(item, model, lines)]
        value = None
    if errors or value is None:
        raise ConfigurationError("\n".join(f"{path}:{line}: {text}" for line, text in sorted(set(errors))))
    return value


def _plain(node: yaml.Node, where: Location, lines: dict[Location, int], errors: list[tuple[int, str]]) -> Any:
    """Return a node as plain values; note the line of every key and every repeated key."""
    lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.CollectionNode) and not node.tag.startswith("tag:yaml.org,2002:"):
        errors.append((node.start_mark.line + 1, f"{_name(where) or 'the file'}: tags like {node.tag} are not allowed"))
    if node.tag.startswith("tag:yaml.org,2002:python"):
        errors.append((node.start_mark.line + 1, f"{_name(where) or 'the file'}: Python objects are not allowed"))
        return None
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*where, index), lines, errors) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return yaml.SafeLoader("").construct_object(node)
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        here = (*where, key)
        if key_node.tag == "tag:yaml.org,2002:merge":
            errors.append((line, "'<<' (merge keys) is not supported: write the keys out"))
            continue
        if key in result:
            errors.append(
                (line, f"{_name(here)}: this key stands here a second time; the first is on line {lines[here]}")
            )
            continue
        lines[here] = line
        result[key] = _plain(value_node, here, lines, errors)
    return result


def _describe(item: Any, model: type[BaseModel], lines: dict[Location, int]) -> Iterator[tuple[int, str]]:
    """Yield line and text of one pydantic error, which may stand for several contradictions."""
    raised = item.get("ctx", {}).get("error")
    if isinstance(raised, WrongValues):
        for where, text in raised.problems:
            location = _without_tags((*item["loc"], *where), lines)
            yield _line(location, lines), f"{_name(location) or _name(where)}: {text}"
        return
    location = _without_tags(item["loc"], lines)
    message = str(item["msg"]).removeprefix("Value error, ")
    kind, key = item["type"], str(item["loc"][-1]) if item["loc"] else ""
    if kind == "extra_forbidden":
        known = sorted(_fields(model, item["loc"][:-1]))
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        message = f"there is no such key; {hint}valid: {', '.join(known)}"
    elif kind == "missing":
        message = f"the key {key!r} is missing"
    elif not isinstance(item.get("input"), dict | list) and kind != "value_error":
        message = f"{message} (it is {json.dumps(item.get('input'))})"
    yield _line(location, lines), f"{_name(location) or 'the file'}: {message}"


def _line(location: Location, lines: dict[Location, int]) -> int:
    while location not in lines and location:
        location = location[:-1]
    return lines.get(location, 1)


def _without_tags(location: Sequence[str | int], lines: dict[Location, int]) -> Location:
    """Return a pydantic location without the parts that name a member of a union and stand in no file."""
    found: Location = ()
    for part in location:
        if (*found, part) in lines:
            found = (*found, part)
    return found


def _name(location: Location) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _fields(annotation: Any, location: Sequence[str | int]) -> set[str]:
    """Return the keys that are valid at `location` below `annotation`."""
    models = [annotation]
    for part in location:
        models = [below for model in models for below in _below(model, part)]
    return {name for model in models for option in _options(model) if _is_model(option) for name in option.model_fields}


def _below(annotation: Any, part: str | int) -> Iterator[Any]:
    for option in _options(annotation):
        if _is_model(option) and part in option.model_fields:
            yield option.model_fields[part].annotation
        elif _is_model(option) and part in _tags(option):
            yield option
        elif get_origin(option) in (list, tuple) and isinstance(part, int):
            yield get_args(option)[0]


def _options(annotation: Any) -> list[Any]:
    """Return the members of a union, however it is written; else the annotation alone."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [option for member in get_args(annotation) for option in _options(member)]
    return [annotation]


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    field = model.model_fields.get("type")
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)
