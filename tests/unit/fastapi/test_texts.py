"""Values as an answer can carry them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from celeriac.fastapi.texts import json_of, sayable

_TEXTS = st.text(st.characters(codec=None))  # with surrogates
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _TEXTS),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(_TEXTS, inner)),
)


@given(_VALUES)
def test_whatever_json_can_say_is_written(value: Any) -> None:
    json.loads(json_of(value))


def test_what_can_be_said_stays_as_it_is() -> None:
    value = {"a": ["é", 1.5, None]}
    assert sayable(value) is value


def test_halves_of_surrogate_pairs_are_escaped() -> None:
    assert sayable(["\ud83d", {"\udc00": "a"}]) == ["\\ud83d", {"\\udc00": "a"}]


def test_what_is_nested_too_deep_is_cut() -> None:
    value: list[Any] = []
    for _ in range(500):
        value = [value]
    assert "…" in json_of(sayable(value))
