"""The model storage's tokens: one for each kind of caller, with the scopes that it needs.

A token's name is what the history says who made a change. Airflow keeps each in the connection
`nightshift_storage_<name>`; a job is given the one of its kind and no other.
"""

from __future__ import annotations

from typing import Literal

Scope = Literal["read", "publish", "promote", "delete", "report"]
"""`report` tells what was seen of a canary, which decides about its promotion: a router's."""

TOKENS: dict[str, tuple[Scope, ...]] = {
    "evaluate": ("read",),
    "publish": ("read", "publish"),
    "deploy": ("read", "promote"),
    "retention": ("read", "delete"),
    "airflow": ("read", "promote"),
    "operator": ("read", "publish", "promote", "delete"),
}
"""Name -> what it may do: four kinds of jobs, the page *Nightshift* in Airflow, and people at a shell."""
OPERATOR = "operator"
"""The one that no connection holds."""
