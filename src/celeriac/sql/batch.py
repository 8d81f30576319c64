"""Whole batches as one JSON parameter, and back as one JSON row: where the dialects differ.

CPython's ``sqlite3`` gives up and re-takes the interpreter lock at every step of a statement, and while the
event loop is busy each re-take can wait for its whole switch interval of 5 ms. A statement that takes a
hundred rows in one parameter, and hands a hundred back in one row, waits once instead of a hundred times.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement, GenericFunction
from sqlalchemy.sql.selectable import TableValuedAlias

__all__ = [
    "byte_length",
    "dump",
    "elements",
    "gather",
    "gather_one",
    "insert",
    "integer",
    "itself",
    "joined",
    "leading_integer",
    "load",
    "number",
    "text",
]


def dump(rows: Iterable[Any]) -> str:
    """The JSON parameter for a batch: ASCII, so that any text survives any database encoding."""
    return json.dumps(list(rows), separators=(",", ":"))


def load(document: str | None) -> list[Any]:
    """What :func:`gather` or :func:`gather_one` has gathered."""
    rows: list[Any] = json.loads(document) if document else []
    return rows


#: Rows of one INSERT statement; a power of two.
_LARGEST_INSERT = 128


def insert(
    connection: Connection, table: sa.Table, columns: tuple[str, ...], rows: Sequence[Sequence[Any]]
) -> None:
    """Insert rows, each a value for every one of ``columns``, in order."""
    if not rows:
        return
    if connection.dialect.name != "sqlite":
        connection.execute(sa.insert(table), [dict(zip(columns, row, strict=True)) for row in rows])
        return
    # One statement of many rows is one step, where executemany steps once for each row. Its sizes are powers of
    # two, so that a handful of prepared statements serves all batches.
    start, size = 0, _LARGEST_INSERT
    while start < len(rows):
        while size > len(rows) - start:
            size //= 2
        parameters = tuple(value for row in rows[start : start + size] for value in row)
        connection.exec_driver_sql(_insert_text(table.name, columns, size), parameters)
        start += size


@cache
def _insert_text(table: str, columns: tuple[str, ...], size: int) -> str:
    row = f"({', '.join('?' * len(columns))})"
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([row] * size)}"


class _Elements(GenericFunction[Any]):
    inherit_cache = True
    name = "celeriac_elements"


@compiles(_Elements, "sqlite")
def _elements_sqlite(element: _Elements, compiler: Any, **options: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(_Elements, "postgresql")
def _elements_postgresql(element: _Elements, compiler: Any, **options: Any) -> str:
    return f"jsonb_array_elements(CAST({compiler.process(element.clauses, **options)} AS jsonb))"


def elements(parameter: str, name: str = "batch") -> TableValuedAlias:
    """The elements of the JSON array in ``parameter``, as a table ``name`` with one column, ``value``."""
    return _Elements(sa.bindparam(parameter, type_=sa.Text())).table_valued("value", name=name)


class _Field(FunctionElement[Any]):
    """One field of an element that is an array itself."""

    inherit_cache = True
    name = "celeriac_field"


class _Integer(_Field):
    inherit_cache = True
    type = sa.BigInteger()


class _Number(_Field):
    inherit_cache = True
    type = sa.Float()


class _Text(_Field):
    inherit_cache = True
    type = sa.Text()


@compiles(_Field, "sqlite")
def _field_sqlite(element: _Field, compiler: Any, **options: Any) -> str:
    value, position = (compiler.process(clause, **options) for clause in element.clauses)
    return f"json_extract({value}, '$[{position}]')"


@compiles(_Field, "postgresql")
def _field_postgresql(element: _Field, compiler: Any, **options: Any) -> str:
    value, position = (compiler.process(clause, **options) for clause in element.clauses)
    kind = compiler.dialect.type_compiler_instance.process(element.type)
    return f"CAST({value} ->> {position} AS {kind})"


def integer(table: TableValuedAlias, position: int) -> sa.ColumnElement[int]:
    """The field at ``position`` of each element, as an integer or NULL."""
    return _Integer(table.c.value, sa.literal_column(str(position)))


def number(table: TableValuedAlias, position: int) -> sa.ColumnElement[float]:
    """The field at ``position`` of each element, as a floating point number or NULL."""
    return _Number(table.c.value, sa.literal_column(str(position)))


def text(table: TableValuedAlias, position: int) -> sa.ColumnElement[str]:
    """The field at ``position`` of each element, as text or NULL."""
    return _Text(table.c.value, sa.literal_column(str(position)))


class _Gather(FunctionElement[str]):
    inherit_cache = True
    name = "celeriac_gather"
    type = sa.Text()


@compiles(_Gather, "sqlite")
def _gather_sqlite(element: _Gather, compiler: Any, **options: Any) -> str:
    return f"json_group_array(json_array({compiler.process(element.clauses, **options)}))"


@compiles(_Gather, "postgresql")
def _gather_postgresql(element: _Gather, compiler: Any, **options: Any) -> str:
    return f"CAST(json_agg(json_build_array({compiler.process(element.clauses, **options)})) AS text)"


def gather(rows: sa.Subquery, *names: str) -> sa.Select[str]:
    """Select ``rows`` as one JSON text: an array with an array of the named columns for each row."""
    return sa.select(_Gather(*(rows.c[name] for name in names)))


class _GatherOne(FunctionElement[str]):
    inherit_cache = True
    name = "celeriac_gather_one"
    type = sa.Text()


@compiles(_GatherOne, "sqlite")
def _gather_one_sqlite(element: _GatherOne, compiler: Any, **options: Any) -> str:
    return f"json_group_array({compiler.process(element.clauses, **options)})"


@compiles(_GatherOne, "postgresql")
def _gather_one_postgresql(element: _GatherOne, compiler: Any, **options: Any) -> str:
    return f"CAST(json_agg({compiler.process(element.clauses, **options)}) AS text)"


def gather_one(rows: sa.Subquery) -> sa.Select[str]:
    """Select the only column of ``rows`` as one JSON text: an array of its values."""
    (column,) = rows.c
    return sa.select(_GatherOne(column))


class _Joined(FunctionElement[bytes]):
    inherit_cache = True
    name = "celeriac_joined"
    type = sa.LargeBinary()


@compiles(_Joined, "sqlite")
def _joined_sqlite(element: _Joined, compiler: Any, **options: Any) -> str:
    return f"CAST(group_concat({compiler.process(element.clauses, **options)}, '') AS BLOB)"


@compiles(_Joined, "postgresql")
def _joined_postgresql(element: _Joined, compiler: Any, **options: Any) -> str:
    return (
        f"string_agg(convert_to({compiler.process(element.clauses, **options)}, 'UTF8'), CAST('' AS bytea))"
    )


def joined(column: sa.ColumnElement[str]) -> sa.ColumnElement[bytes]:
    """The texts of a column, one after the other as UTF-8, in the order of a :func:`gather` over the same rows."""
    return _Joined(column)


class _ByteLength(FunctionElement[int]):
    inherit_cache = True
    name = "celeriac_byte_length"
    type = sa.Integer()


@compiles(_ByteLength, "sqlite")
def _byte_length_sqlite(element: _ByteLength, compiler: Any, **options: Any) -> str:
    return f"length(CAST({compiler.process(element.clauses, **options)} AS BLOB))"


@compiles(_ByteLength, "postgresql")
def _byte_length_postgresql(element: _ByteLength, compiler: Any, **options: Any) -> str:
    return f"octet_length(convert_to({compiler.process(element.clauses, **options)}, 'UTF8'))"


def byte_length(column: sa.ColumnElement[str]) -> sa.ColumnElement[int]:
    """How many bytes a text has in UTF-8."""
    return _ByteLength(column)


class _Itself(FunctionElement[str]):
    inherit_cache = True
    name = "celeriac_itself"
    type = sa.Text()


@compiles(_Itself, "sqlite")
def _itself_sqlite(element: _Itself, compiler: Any, **options: Any) -> str:
    value: str = compiler.process(element.clauses, **options)
    return value


@compiles(_Itself, "postgresql")
def _itself_postgresql(element: _Itself, compiler: Any, **options: Any) -> str:
    return f"({compiler.process(element.clauses, **options)} #>> '{{}}')"


def itself(table: TableValuedAlias) -> sa.ColumnElement[str]:
    """Each element, which is a string or a number, as text."""
    return _Itself(table.c.value)


class _Leading(FunctionElement[int]):
    inherit_cache = True
    name = "celeriac_leading"
    type = sa.BigInteger()


@compiles(_Leading, "sqlite")
def _leading_sqlite(element: _Leading, compiler: Any, **options: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **options)} AS INTEGER)"


@compiles(_Leading, "postgresql")
def _leading_postgresql(element: _Leading, compiler: Any, **options: Any) -> str:
    value = compiler.process(element.clauses, **options)
    return f"CAST(coalesce(substring({value} from '^[0-9]{{1,18}}'), '0') AS bigint)"


def leading_integer(table: TableValuedAlias) -> sa.ColumnElement[int]:
    """The number that each element is or begins with, as ``"12.3"`` with 12; zero when there is none."""
    return _Leading(itself(table))
