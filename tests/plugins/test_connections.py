"""What of a job's environment may show in no log."""

import pytest
from nightshift.connections import JobEnvironment


@pytest.mark.parametrize(
    ("secret", "hidden"),
    [
        ("token-1", {"token-1"}),
        ("postgresql://me:pass@host:5432/db", {"pass"}),
        ("postgresql://me:p%40ss@host/db", {"p%40ss", "p@ss"}),
        ("postgresql://host/db", set()),
        ("http://[broken", {"http://[broken"}),
    ],
)
def test_of_an_address_only_its_password_is_hidden(secret: str, hidden: set[str]) -> None:
    assert set(JobEnvironment(secrets={"NAME": secret}).masked()) == hidden
