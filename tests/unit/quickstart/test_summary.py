from __future__ import annotations

import json

import pytest
from examples.quickstart.worker.summary import parse, summarize


def summaries(payload: str) -> dict[str, dict[str, object]]:
    return {name: summarize(values).model_dump() for name, values in parse(payload).items()}


def test_csv_columns_get_the_narrowest_type_that_fits_every_cell() -> None:
    table = parse(
        "n,x,ok,day,at,name\n1,1.5,true,2026-01-31,2026-01-31T10:00,Ada\n2,3,no,2026-02-01,2026-02-01T10:00,7\n"
    )
    assert [summarize(values).type for values in table.values()] == [
        "integer",
        "number",
        "boolean",
        "date",
        "datetime",
        "text",
    ]


def test_csv_summary_counts_missing_cells_and_leaves_them_out_of_the_figures() -> None:
    assert summaries("age\n10\n\n") == {
        "age": {"type": "integer", "missing": 0, "min": 10, "max": 10, "mean": 10.0}
    }
    assert summaries("age,x\n10,a\nNA,b\n30,c")["age"] == {
        "type": "integer",
        "missing": 1,
        "min": 10,
        "max": 30,
        "mean": 20.0,
    }


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_delimiter_is_taken_from_the_header(delimiter: str) -> None:
    assert list(parse(f"a{delimiter}b\n1{delimiter}2")) == ["a", "b"]


def test_json_records_may_lack_keys() -> None:
    found = summaries(json.dumps([{"a": 1, "b": "x"}, {"a": 2.5}, {"b": None}]))
    assert found["a"] == {"type": "number", "missing": 1, "min": 1, "max": 2.5, "mean": 1.75}
    assert found["b"] == {"type": "text", "missing": 2, "min": "x", "max": "x", "mean": None}


def test_json_values_of_several_types_have_no_order() -> None:
    found = summaries('[{"a": 1, "b": true, "c": {}}, {"a": "x", "b": false, "c": {"d": 1}}]')
    assert [found[name]["type"] for name in "abc"] == ["mixed", "boolean", "object"]
    assert found["a"]["min"] is None


def test_every_summary_can_be_carried_by_json() -> None:
    huge = "9" * 400
    for payload in (f"a\n{huge}\n1", f'[{{"a": {huge}}}]', "a\nnan\ninf", "a,b\n1e308,1\n1e308,2"):
        json.dumps(summaries(payload), allow_nan=False)


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ("", "The payload is empty."),
        ("  \n", "The payload is empty."),
        ("just words", "neither JSON records nor CSV"),
        ("[]", "has no records"),
        ("[{}]", "has no columns"),
        ("[1, 2]", "Record 1 is no JSON object: 1"),
        ('{"a": ', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('[{"a": NaN}]', "JSON cannot carry: NaN"),
        ('[{"a": 1e999}]', "JSON cannot carry: 1e999"),
        ("a,a\n1,2", "a different name for each column"),
        ("a,b\n1,2\n1,2,3", "Row 2 of the CSV has 3 values; the header has 2"),
        ("a\n" + "x" * 200_000, "not valid CSV"),
    ],
)
def test_bad_payload_is_a_value_error_with_a_sentence(payload: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse(payload)
