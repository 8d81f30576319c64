"""Whole batches as one JSON parameter, and back as one JSON row: where the dialects differ.

CPython's ``sqlite3`` gives up and re-takes the interpreter lock at every step of a statement, and while the
event loop is busy each re-take can wait for its whole switch interval of 5 ms. A statement that takes a
hundred rows in one parameter, and hands a hundred back in one row, waits once instead of a hundred times.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement, GenericFunction
from sqlalchemy.sql.selectable import TableValuedAlias

__all__ = ["dump", "elements", "gather", "integer", "load", "number", "scalar_integer", "text"]


def dump(rows: Iterable[Any]) -> str:
    """The JSON parameter for a batch: ASCII, so that any text survives any database encoding."""
    return json.dumps(list(rows), separators=(",", ":"))


def load(document: str | None) -> list[Any]:
    """What :func:`gather` has gathered."""
    rows: list[Any] = json.loads(document) if document else []
    return rows


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


class _ScalarInteger(FunctionElement[int]):
    """An element that is an integer, not an array."""

    inherit_cache = True
    name = "celeriac_integer"
    type = sa.BigInteger()


@compiles(_ScalarInteger, "sqlite")
def _scalar_sqlite(element: _ScalarInteger, compiler: Any, **options: Any) -> str:
    value: str = compiler.process(element.clauses, **options)
    return value


@compiles(_ScalarInteger, "postgresql")
def _scalar_postgresql(element: _ScalarInteger, compiler: Any, **options: Any) -> str:
    return f"CAST(CAST({compiler.process(element.clauses, **options)} AS text) AS bigint)"


def scalar_integer(table: TableValuedAlias) -> sa.ColumnElement[int]:
    """Each element itself, as an integer."""
    return _ScalarInteger(table.c.value)


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
