"""SQL expressions over records and events that each dialect writes in its own way."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement, GenericFunction

from celeriac.sql.batch import gather

__all__ = ["decoded", "gather_bytes", "json_field", "load_bytes", "micros", "strings"]


class _Strings(GenericFunction[Any]):
    inherit_cache = True
    name = "celeriac_strings"


@compiles(_Strings, "sqlite")
def _strings_sqlite(element: _Strings, compiler: Any, **options: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(_Strings, "postgresql")
def _strings_postgresql(element: _Strings, compiler: Any, **options: Any) -> str:
    return f"jsonb_array_elements_text(CAST({compiler.process(element.clauses, **options)} AS jsonb))"


def strings(parameter: str) -> sa.Select[Any]:
    """The elements of ``parameter``, a JSON array of strings, for an ``IN``."""
    return sa.select(_Strings(sa.bindparam(parameter, type_=sa.Text())).table_valued("value").c.value)


class _Decoded(FunctionElement[str]):
    inherit_cache = True
    name = "celeriac_decoded"
    type = sa.Text()


@compiles(_Decoded, "sqlite")
def _decoded_sqlite(element: _Decoded, compiler: Any, **options: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **options)} AS TEXT)"


@compiles(_Decoded, "postgresql")
def _decoded_postgresql(element: _Decoded, compiler: Any, **options: Any) -> str:
    return f"convert_from({compiler.process(element.clauses, **options)}, 'UTF8')"


def decoded(column: sa.ColumnElement[bytes]) -> sa.ColumnElement[str]:
    """One of Celery's binary columns as text: JSON, unless somebody else has written something else."""
    return _Decoded(column)


class _JsonField(FunctionElement[str]):
    inherit_cache = True
    name = "celeriac_json_field"
    type = sa.Text()


@compiles(_JsonField, "sqlite")
def _json_field_sqlite(element: _JsonField, compiler: Any, **options: Any) -> str:
    column, name = (compiler.process(clause, **options) for clause in element.clauses)
    return f"json_extract({column}, '$.' || {name})"


@compiles(_JsonField, "postgresql")
def _json_field_postgresql(element: _JsonField, compiler: Any, **options: Any) -> str:
    column, name = (compiler.process(clause, **options) for clause in element.clauses)
    return f"CAST({column} AS jsonb) ->> {name}"


def json_field(column: sa.ColumnElement[str], name: str) -> sa.ColumnElement[str]:
    """The field ``name`` of the JSON object in ``column``, as text."""
    return _JsonField(column, sa.literal_column(f"'{name}'"))


def micros(column: sa.ColumnElement[float]) -> sa.ColumnElement[int]:
    """Epoch seconds as whole microseconds: JSON functions write a float with too few digits."""
    return sa.cast(column * sa.literal_column("1000000.0") + sa.literal_column("0.5"), sa.BigInteger())


def gather_bytes(rows: sa.Subquery, *names: str) -> sa.Select[bytes]:
    """Like :func:`celeriac.sql.batch.gather`, as bytes: what somebody else wrote need not be valid UTF-8."""
    text = gather(rows, *names).scalar_subquery()
    return sa.select(sa.cast(text, sa.LargeBinary()))


def load_bytes(document: bytes | None) -> list[list[Any]]:
    """The rows that :func:`gather_bytes` has gathered."""
    rows: list[list[Any]] = json.loads(document.decode("utf-8", "replace")) if document else []
    return rows
