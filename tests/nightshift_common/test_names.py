"""The one rule for names, as a function and as a type of pydantic's."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from nightshift_common.names import Name, is_name, is_pipeline_name


@pytest.mark.parametrize(
    ("text", "name", "pipeline"),
    [
        ("digits", True, True),
        ("digits_2", True, True),
        ("Digits-2.1", True, False),
        ("1", True, False),
        ("x" * 100, True, False),
        ("x" * 101, False, False),
        ("x" * 50, True, True),
        ("", False, False),
        (".hidden", False, False),
        ("-option", False, False),
        ("../up", False, False),
        ("a/b", False, False),
        ("a b", False, False),
        ("a\n", False, False),
        ("ä", False, False),
        ("٣", False, False),
    ],
)
def test_function_and_type_agree_on_what_a_name_is(text: str, name: bool, pipeline: bool) -> None:
    assert is_name(text) is name
    assert is_pipeline_name(text) is pipeline
    try:
        assert TypeAdapter(Name).validate_python(text) == text and name
    except ValidationError:
        assert not name
