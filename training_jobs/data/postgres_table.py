"""Labeled pictures that a PostgreSQL table lists."""

from __future__ import annotations

import re

from jobkit import database
from jobkit.errors import ConfigurationError, DataValidationError
from training_jobs.data.listing import Listed

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}")


def table_name(text: str) -> tuple[str, str]:
    """Return schema and table of `table` or `schema.table`.

    Raises:
        ConfigurationError: it is not a name.
    """
    parts = text.split(".")
    if len(parts) > 2 or not all(_IDENTIFIER.fullmatch(part) for part in parts):
        raise ConfigurationError(
            f"--table {text!r} is not a table name: 'table' or 'schema.table', letters, digits and '_'"
        )
    return (parts[0], parts[1]) if len(parts) == 2 else ("public", parts[0])


def listed_in_table(name: str, multi_label: bool) -> list[Listed]:
    """Return the pictures of a table with the columns `path`, `label` and, optionally, `split_group` or `picset`.

    A row without a label is one that nobody has labeled yet: it is left out. In a set that is `multi_label` a picture
    may have several rows, or an array of labels: an empty one says that it shows none of the classes.

    Raises:
        ConfigurationError: there is no such table, a column is missing, or a label is an array where one is wanted.
        DataValidationError: a row has no path.
        TransientError: the database does not answer.
    """
    from psycopg2 import sql

    schema, table = table_name(name)
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s",
            (schema, table),
        )
        columns = {row[0] for row in cursor.fetchall()}
        if not columns:
            cursor.execute(
                "SELECT table_name FROM information_schema.tables WHERE table_schema = %s ORDER BY 1", (schema,)
            )
            there = ", ".join(row[0] for row in cursor.fetchall()) or "none"
            raise ConfigurationError(f"there is no table {schema}.{table}; the tables of {schema}: {there}")
        if absent := {"path", "label"} - columns:
            raise ConfigurationError(
                f"the table {schema}.{table} lacks the column {', '.join(sorted(absent))};"
                f" it has: {', '.join(sorted(columns))}"
            )
        group = next((c for c in ("split_group", "picset") if c in columns), None)
        chosen = [sql.Identifier("path"), sql.Identifier("label"), sql.Identifier(group) if group else sql.SQL("NULL")]
        cursor.execute(
            sql.SQL("SELECT {} FROM {} WHERE label IS NOT NULL").format(
                sql.SQL(", ").join(chosen), sql.Identifier(schema, table)
            )
        )
        rows = cursor.fetchall()
    if unnamed := sum(not path for path, *_ in rows):
        raise DataValidationError(f"{unnamed} of {len(rows)} rows of {schema}.{table} have no path")
    if not rows:
        raise ConfigurationError(f"the table {schema}.{table} is empty")
    if not multi_label and (arrays := sum(isinstance(label, list) for _, label, _ in rows)):
        raise ConfigurationError(
            f"{arrays} of {len(rows)} rows of {schema}.{table} have an array of labels: "
            "set multi_label where a picture may have several"
        )
    return [
        Listed(source=str(path), label=one, split_group=None if key is None else str(key))
        for path, label, key in rows
        for one in _labels(label)
    ]


def _labels(value: object) -> list[str | None]:
    """Return the labels that a row gives; None where its array is empty. A null in an array is no label."""
    if not isinstance(value, list):
        return [str(value)]
    return [str(label) for label in value if label is not None] or [None]
