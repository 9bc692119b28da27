"""Tables that are kept by hand say what the jobs say."""

from typing import get_args

from jobkit.snapshot import Refused
from nightshift_common.options.weights import FAMILIES
from tests.support.documents import quoted, table


def test_each_family_of_weights_has_its_row() -> None:
    assert {quoted(row[0])[0] for row in table("docs/conversion.md", "family")} == set(FAMILIES)


def test_each_reason_to_refuse_a_picture_has_its_row() -> None:
    told = {name for row in table("docs/data.md", "reason") for name in quoted(row[0])}
    assert told == set(get_args(Refused.model_fields["reason"].annotation))
