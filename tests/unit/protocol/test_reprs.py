from __future__ import annotations

from typing import Any

import pytest
from celery.utils.saferepr import saferepr
from hypothesis import given
from hypothesis import strategies as st

from celeriac.protocol.reprs import flat_repr

_PLAIN = st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none())


@given(st.lists(_PLAIN, min_size=1).map(tuple), st.sampled_from([20, 1024, None]))
def test_a_tuple_is_shown_as_celery_shows_it(values: tuple[Any, ...], limit: int | None) -> None:
    shown = flat_repr(values, limit)
    assert shown is None or shown == saferepr(values, limit)


@given(st.dictionaries(st.text(), _PLAIN, min_size=1), st.sampled_from([20, 1024, None]))
def test_a_dict_is_shown_as_celery_shows_it(values: dict[str, Any], limit: int | None) -> None:
    shown = flat_repr(values, limit)
    assert shown is None or shown == saferepr(values, limit)


@pytest.mark.parametrize("values", [("a" * 1025,), ([1],), {"a": {}}, (b"x",)])
def test_what_is_long_or_has_parts_is_left_to_celery(values: Any) -> None:
    assert flat_repr(values, 1024) is None


def test_texts_and_numbers_are_not_left_to_celery() -> None:
    assert flat_repr(("it's", 1, None), 1024) == r"('it\'s', 1, None)"
