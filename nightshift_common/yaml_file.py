"""YAML configuration files, checked as a whole: every error at once, each with file, line and what is valid.

Plain YAML loaders keep the last of two equal keys silently; here a repeated key is an error. Booleans are `true` and
`false` only (YAML 1.2: `no` is text), numbers may be written `1e-3` or `4.e-4`, a date is text. Aliases are written
out within bounds, so that no small file becomes as large as the memory.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)
Location = tuple[str | int, ...]
MAX_BYTES = 1 << 20  # of a file that people write by hand
MAX_VALUES = 20_000  # with all aliases written out
MAX_DEPTH = 50
_REPLACED = frozenset({"bool", "float", "timestamp"})


class ConfigFileError(ValueError):
    """A configuration file is wrong; one line an error: `file:line: key: what is wrong, and what is valid`."""


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


class ConfigFile:
    """The content of a file with the line of every key, and the errors that were found in it so far."""

    def __init__(self, name: str) -> None:
        self.name, self.content = name, None
        self.lines: dict[Location, int] = {}
        self.errors: list[tuple[int, str]] = []
        self._values = 0

    @classmethod
    def read(cls, path: Path, relative_to: Path | None = None) -> ConfigFile:
        """Return the file at `path`, called in messages as it is seen from `relative_to`.

        Raises:
            ConfigFileError: it cannot be read, or is no YAML. Repeated keys wait for `validate`.
        """
        inside = relative_to is not None and path.is_relative_to(relative_to)
        file = cls(str(path.relative_to(relative_to) if inside and relative_to else path))
        try:
            if path.stat().st_size > MAX_BYTES:
                raise file._error(1, f"the file is larger than {MAX_BYTES >> 20} MiB: this is no configuration")
            node = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
            file.content = file._plain(node, (), ()) if node is not None else {}
        except OSError as error:
            raise ConfigFileError(f"{file.name} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise file._error(line, f"this is not UTF-8 text: {error.reason}") from error
        except RecursionError as error:
            raise file._error(1, "this is not YAML that can be read: it is nested too deeply") from error
        except yaml.YAMLError as error:
            mark, context = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
            problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
            since = f" ({getattr(error, 'context', '')} that begins in line {context.line + 1})" if context else ""
            raise file._error(mark.line + 1 if mark else 1, f"this is not YAML: {problem}{since}") from error
        return file

    def validate(self, model: type[M]) -> M:
        """Return the content as `model`, validated strictly (`"16"` is no number, `1` is no boolean).

        Raises:
            ConfigFileError: with every error of the file, also those noted before.
        """
        value = None
        try:
            value = model.model_validate_json(json.dumps(self.content), strict=True)
        except ValidationError as error:
            self.errors += [described for item in error.errors() for described in _describe(item, model, self.lines)]
        self.raise_if_any()
        if value is None:  # impossible: whatever pydantic raised is noted
            raise AssertionError("no value and no error")
        return value

    def add(self, location: Location, message: str) -> None:
        """Note an error at a key; it gets the line of the innermost key above it that stands in the file."""
        self.errors.append((_line(location, self.lines), f"{_name(location) or 'the file'}: {message}"))

    def fail(self, location: Location, message: str) -> NoReturn:
        """Raise what was noted, and one error more."""
        self.add(location, message)
        self.raise_if_any()
        raise AssertionError("an error was noted just above")

    def raise_if_any(self) -> None:
        """Raise all errors that were noted, in the order of the file."""
        if self.errors:
            raise ConfigFileError("\n".join(f"{self.name}:{line}: {text}" for line, text in sorted(set(self.errors))))

    def _error(self, line: int, text: str) -> ConfigFileError:
        return ConfigFileError(f"{self.name}:{line}: {text}")

    def _plain(self, node: yaml.Node, where: Location, above: tuple[int, ...]) -> Any:
        """Return a node as plain values; note the line of every key and every repeated key."""
        line = node.start_mark.line + 1
        self.lines.setdefault(where, line)
        self._values += 1
        if id(node) in above:
            raise self._error(line, f"{_name(where)}: an alias stands inside what it stands for: write it out")
        if self._values > MAX_VALUES or len(above) > MAX_DEPTH:
            what = f"more than {MAX_VALUES:,} values" if self._values > MAX_VALUES else f"more than {MAX_DEPTH} levels"
            raise self._error(line, f"{_name(where)}: this is not a configuration: it has {what}, aliases written out")
        if isinstance(node, yaml.CollectionNode) and not node.tag.startswith("tag:yaml.org,2002:"):
            self.add(where, f"tags like {node.tag} are not allowed")
        if node.tag.startswith("tag:yaml.org,2002:python"):
            self.add(where, "Python objects are not allowed")
            return None
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, (*where, n), (*above, id(node))) for n, item in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return yaml.SafeLoader("").construct_object(node)
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            here = (*where, key)
            if key_node.tag == "tag:yaml.org,2002:merge":
                self.errors.append((line, "'<<' (merge keys) is not supported: write the keys out"))
                continue
            if key in result:
                first = self.lines[here]
                text = f"{_name(here)}: this key stands here a second time; the first is on line {first}"
                self.errors.append((line, text))
                continue
            self.lines[here] = line
            result[key] = self._plain(value_node, here, (*above, id(node)))
        return result


def load(path: Path, model: type[M], relative_to: Path | None = None) -> M:
    """Return the file's content as `model`, validated strictly.

    Raises:
        ConfigFileError: the file cannot be read, is no YAML, repeats a key or does not fit the model; the message has
            one line per error: `file:line: key: what is wrong`.
    """
    return ConfigFile.read(path, relative_to).validate(model)


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
        location = (*_without_tags(item["loc"][:-1], lines), key)  # which stands in no file
        message = "the key is missing"
    elif not isinstance(item.get("input"), dict | list) and kind != "value_error":
        message = f"{message[0].lower()}{message[1:]} (it is {json.dumps(item.get('input'))})"
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
