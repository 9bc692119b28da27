"""The fields of trigger forms, made from the classes of options that the jobs behind them check."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

NO_DEFAULT: Any = object()
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def in_words(bounds: dict[str, float]) -> str:
    """Return bounds of JSON schema as a person says them: "At least 1, at most 1000"."""
    text = ", ".join(f"{BOUNDS[keyword]} {bounds[keyword]:g}" for keyword in BOUNDS if keyword in bounds)
    return text[0].upper() + text[1:]


def form_field(options: type[BaseModel], name: str, default: Any = NO_DEFAULT, **changes: Any) -> Param:
    """Return an option as a field of a form: type, bounds, choices, title and description as the job has them.

    Args:
        options: the class of options.
        name: the option.
        default: what the form shows first; where it is left out, the option's own default.
        changes: keywords of JSON schema that the form has otherwise, say `description`.
    """
    field = options.model_fields[name]
    schema = flat_schema(options.model_json_schema(by_alias=False)["properties"][name], options)
    for keyword in ("default", "format"):  # the form shows a default of its own; a path is typed as text
        schema.pop(keyword, None)
    schema.setdefault("title", name.replace("_", " ").capitalize())
    schema |= changes
    bounds = {keyword: schema.pop(keyword) for keyword in BOUNDS if keyword in schema}
    if "description" in schema:
        text = str(schema["description"]).replace("\n", " ")
        schema["description"] = text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
    if bounds:
        # Airflow's field for numbers turns what is out of bounds into the next bound, and says nothing. Inside `allOf`
        # it does not look, while the server does, and refuses.
        schema["allOf"] = [bounds]
        schema["description"] = " ".join(filter(None, [schema.get("description"), f"{in_words(bounds)}."]))
    if default is NO_DEFAULT:
        default = None if field.default is PydanticUndefined else field.get_default(call_default_factory=True)
    return Param(list(default) if isinstance(default, tuple) else default, **schema)


def flat_schema(schema: dict[str, Any], options: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of an option without `anyOf` and `$ref`, which Airflow's forms do not show.

    Raises:
        ValueError: the option may be of several types that have keywords of their own.
    """
    flat = {key: value for key, value in schema.items() if key != "anyOf"}
    choices = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    if len(choices) > 1:
        raise ValueError(f"{options.__name__}: no field of a form stands for {schema}")
    for choice in choices:
        flat |= {key: value for key, value in choice.items() if key != "type"}
        flat["type"] = ["null", choice["type"]]
        if "enum" in choice:  # by JSON schema, null has to stand there too
            flat["enum"] = [None, *choice["enum"]]
    if flat.get("type") == "array" and "prefixItems" in flat:
        raise ValueError(f"{options.__name__}: no field of a form stands for {schema}")
    return flat
