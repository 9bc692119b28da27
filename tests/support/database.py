"""A statement for a real PostgreSQL, as whoever the connection is."""

from __future__ import annotations

from typing import Any

import psycopg2


def run_statement(statement: str, *address: str, **where: Any) -> list[tuple[Any, ...]]:
    """Run a statement, committed at once, on a connection of its own; return its rows.

    Args:
        statement: one, or several of which none has rows.
        address: a URL; or none, and `where`.
        where: what `psycopg2.connect` takes by name.
    """
    connection = psycopg2.connect(*address, connect_timeout=10, **where)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()
