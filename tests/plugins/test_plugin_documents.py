"""Tables that are kept by hand say what the code says: exit codes, connections, launchers."""

from __future__ import annotations

import pytest
from airflow.sdk.exceptions import AirflowFailException

from nightshift.connections import VARIABLES
from nightshift.errors import JobFailed, failure
from nightshift.launchers.base import Ended
from nightshift.launchers.registry import LAUNCHERS
from nightshift_common.exit_codes import ExitCode
from tests.support.documents import quoted, table

CODES = {str(int(code)) for code in ExitCode if code is not ExitCode.CRASHED} | {"other"}


def test_the_table_of_exit_codes_has_each_and_says_whether_it_is_tried_again() -> None:
    rows = table("docs/architecture.md", "exit code")
    assert {row[0] for row in rows} == CODES
    for code, _, then in (row for row in rows if row[0] != "0"):
        raised = failure(Ended(1 if code == "other" else int(code)), "what happened")
        assert isinstance(raised, AirflowFailException) == ("no retry" in then), code
    assert isinstance(failure(Ended(None), "killed"), JobFailed)


def test_the_runbook_knows_each_exit_code_of_a_failure() -> None:
    assert {row[0] for row in table("docs/runbook.md", "exit code")} == CODES - {"0"}


def test_the_table_of_connections_has_each_with_its_variables() -> None:
    told = {
        quoted(row[0])[0]: (quoted(row[1]), quoted(row[2])) for row in table("docs/architecture.md", "connection id")
    }
    assert set(told) == {f"nightshift_{name}" for name in VARIABLES}
    for name, variables in VARIABLES.items():
        fields, named = told[f"nightshift_{name}"]
        assert {place.removesuffix("?") for _, place, _ in variables} == set(fields) - {"s3://…", "host:port"}, name
        assert {variable for variable, _, _ in variables} == set(named), name


@pytest.mark.parametrize("name", ["NIGHTSHIFT_LAUNCHER"])
def test_the_setting_of_the_launcher_names_each(name: str) -> None:
    (row,) = [row for row in table("docs/architecture.md", "setting") if quoted(row[0]) == [name]]
    assert set(quoted(row[1])) == set(LAUNCHERS)
