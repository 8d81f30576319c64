"""What the database must contain, and how it gets it, even when several processes start at once."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateTable

from celeriac.sql import engine as sql_engine
from celeriac.sql.tables import metadata, triggers

__all__ = ["create_tables"]

#: Any number that no other application locks in PostgreSQL for its own purposes.
_ADVISORY_LOCK = 0x63656C65726961


def create_tables(engine: Engine) -> None:
    """Create what is missing: tables, indexes, triggers, and our columns in stock Celery's table.

    Looks first and writes only when something is missing, so that it disturbs no process that is at work.
    Raises BrokerUnavailable when the database does not let us.
    """
    if sql_engine.read(engine, _missing):
        sql_engine.write(engine, _create_missing)


def _create_missing(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
    for statement in _missing(connection):  # again: another process may have been faster
        connection.execute(statement)


def _missing(connection: Connection) -> list[sa.Executable]:
    inspector = sa.inspect(connection)
    existing = set(inspector.get_table_names())
    statements: list[sa.Executable] = []
    for table in metadata.sorted_tables:
        if table.name not in existing:
            statements.append(CreateTable(table))
            indexes: set[str | None] = set()
        else:
            statements += _missing_columns(connection, inspector, table)
            indexes = {index["name"] for index in inspector.get_indexes(table.name)}
        statements += [
            CreateIndex(index)
            for index in sorted(table.indexes, key=lambda index: str(index.name))
            if index.name not in indexes
        ]
    return statements + _missing_triggers(connection)


def _missing_columns(connection: Connection, inspector: sa.Inspector, table: sa.Table) -> list[sa.Executable]:
    existing = {column["name"] for column in inspector.get_columns(table.name)}
    name = connection.dialect.identifier_preparer.format_table(table)
    return [
        sa.DDL(  # type: ignore[no-untyped-call]
            f"ALTER TABLE {name} ADD COLUMN {CreateColumn(column).compile(dialect=connection.dialect)}"
        )
        for column in table.columns
        if column.name not in existing
    ]


def _missing_triggers(connection: Connection) -> list[sa.Executable]:
    if connection.dialect.name != "sqlite":
        return []
    rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    existing: dict[str, str] = {row[0]: row[1] for row in rows}
    statements: list[sa.Executable] = []
    for name, sql in triggers.items():
        if existing.get(name) == sql:
            continue
        if name in existing:
            statements.append(sa.text(f"DROP TRIGGER {name}"))
        statements.append(sa.text(sql.replace(":", "\\:")))
    return statements
