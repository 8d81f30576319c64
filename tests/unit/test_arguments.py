"""Arguments and results through a task's signature: what fits, what JSON sees, and what comes back."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import pytest
import typing_extensions
from celery.result import AsyncResult, GroupResult, result_from_tuple
from fastapi import File, UploadFile
from kombu.exceptions import EncodeError
from pydantic import BaseModel, ConfigDict, EmailStr, Field, PlainSerializer, SecretStr, computed_field

from celeriac.arguments import ArgumentSchema
from celeriac.errors import ConfigurationError, InvalidArguments
from celeriac.protocol import codec


class Colour(Enum):
    RED = "red"


class Plan(StrEnum):
    FREE = "free"


class Address(typing_extensions.TypedDict):
    street: str
    since: date


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Parcel:
    weight: Decimal
    sent: datetime | None = None


class Order(BaseModel):
    number: int
    at: datetime
    lines: list[Parcel] = []


class Aliased(BaseModel):
    model_config = ConfigDict(extra="forbid")

    written: int = Field(serialization_alias="out")
    read: int = Field(validation_alias="in", default=0)
    both: int = Field(alias="Both", default=0)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return 2 * self.written


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    at: datetime
    key: UUID


def schema(function: Callable[..., Any], **options: Any) -> ArgumentSchema:
    return ArgumentSchema.from_function(function, **{"bound": False, **options})


def accept(annotation: Any) -> ArgumentSchema:
    def task(value): ...  # type: ignore[no-untyped-def]

    task.__annotations__ = {"value": annotation, "return": annotation}
    return schema(task)


WHEN = datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC)

# An annotation, a value, and what JSON sees of it.
VALUES: list[tuple[Any, Any, Any]] = [
    (int, 1, 1),
    (str, "ż", "ż"),
    (float, 1.5, 1.5),
    (bool, True, True),
    (None, None, None),
    (int | None, None, None),
    (list, [1, [2]], [1, [2]]),
    (dict, {"a": {"b": None}}, {"a": {"b": None}}),
    (list[int], [1, 2], [1, 2]),
    (dict[str, float], {"a": 1.0}, {"a": 1.0}),
    (tuple[int, str], (1, "a"), [1, "a"]),
    (set[int], {1}, [1]),
    (datetime, WHEN, "2024-01-02T03:04:05.000006Z"),
    (date, date(2024, 1, 2), "2024-01-02"),
    (timedelta, timedelta(seconds=90), "PT1M30S"),
    (UUID, UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    (Decimal, Decimal("1.10"), "1.10"),
    (Colour, Colour.RED, "red"),
    (Plan, Plan.FREE, "free"),
    (Literal["a", "b"], "a", "a"),
    (Path, Path("a/b"), "a/b"),
    (bytes, b"text", "text"),
    (EmailStr, "a@example.com", "a@example.com"),
    (Annotated[int, Field(gt=0)], 3, 3),
    (Annotated[int, Field(gt=0), ["unhashable"]], 3, 3),
    (Address, {"street": "x", "since": date(2024, 1, 2)}, {"street": "x", "since": "2024-01-02"}),
    (Point, Point(1, 2), [1, 2]),
    (Parcel, Parcel(Decimal("2.5"), WHEN), {"weight": "2.5", "sent": "2024-01-02T03:04:05.000006Z"}),
    (
        Order,
        Order(number=1, at=WHEN, lines=[Parcel(Decimal(1))]),
        {"number": 1, "at": "2024-01-02T03:04:05.000006Z", "lines": [{"weight": "1", "sent": None}]},
    ),
    (Order | None, None, None),
    (list[Colour | int], [Colour.RED, 3], ["red", 3]),
    (Aliased, Aliased(written=1, **{"in": 2, "Both": 3}), {"written": 1, "read": 2, "both": 3}),
    (
        Strict,
        Strict(at=WHEN, key=UUID(int=7)),
        {"at": "2024-01-02T03:04:05.000006Z", "key": "00000000-0000-0000-0000-000000000007"},
    ),
]


@pytest.mark.parametrize(("annotation", "value", "seen"), VALUES, ids=lambda value: str(value)[:40])
def test_values_become_json_and_come_back(annotation: Any, value: Any, seen: Any) -> None:
    typed = accept(annotation)
    args, kwargs = typed.dump((value,), {})
    assert (args, kwargs) == ([seen], {})
    assert json.loads(json.dumps(args)) == [seen]
    assert typed.load(json.loads(json.dumps(args)), {}) == ((value,), {})
    assert typed.load(*typed.dump((), {"value": value})) == ((), {"value": value})
    assert type(typed.load(args, {})[0][0]) is type(value)


@pytest.mark.parametrize(
    ("annotation", "value", "seen"),
    # A result shows its computed fields, as a response does: see below.
    [case for case in VALUES if case[0] is not Aliased],
    ids=lambda value: str(value)[:40],
)
def test_results_become_json_and_come_back(annotation: Any, value: Any, seen: Any) -> None:
    typed = accept(annotation)
    result = json.loads(json.dumps(typed.dump_result(value)))
    assert result == seen
    assert typed.load_result(result) == value


def test_what_is_nearly_right_is_made_right() -> None:
    def task(number: int, ratio: float, when: datetime, order: Order) -> None: ...

    order = {"number": "7", "at": "2024-01-02T00:00:00"}
    args, _ = schema(task).dump(("3", 2, "2024-01-02T03:04:05", order), {})
    assert args == [3, 2.0, "2024-01-02T03:04:05", {"number": 7, "at": "2024-01-02T00:00:00", "lines": []}]
    assert type(args[1]) is float


def full(a: int, b: str = "b", /, c: int = 1, *rest: int, d: int, e: str = "e", **more: float) -> None: ...


def test_every_kind_of_parameter_stays_what_it_was() -> None:
    typed = schema(full)
    args, kwargs = typed.dump(("1", "x", "2", "3", "4"), {"d": "5", "a": "6", "z": 7})
    assert (args, kwargs) == ([1, "x", 2, 3, 4], {"d": 5, "a": 6.0, "z": 7.0})
    assert typed.load(args, kwargs) == ((1, "x", 2, 3, 4), {"d": 5, "a": 6.0, "z": 7.0})


def test_the_name_of_a_positional_only_parameter_is_free_for_other_arguments() -> None:
    def task(a: int, /, **more: list[int]) -> None: ...

    assert schema(task).dump((1,), {"a": ["2"]}) == ([1], {"a": [2]})
    assert schema(task).load([1], {"a": ["2"]}) == ((1,), {"a": [2]})
    with pytest.raises(InvalidArguments, match=r"'a\.0'"):
        schema(task).dump((1,), {"a": ["x"]})


def test_omitted_arguments_stay_omitted() -> None:
    assert schema(full).dump((1,), {"d": 2}) == ([1], {"d": 2})
    assert schema(full).load([1], {"d": 2}) == ((1,), {"d": 2})


def send_email(recipient: EmailStr, subject: str, *, copies: list[EmailStr] = [], urgent: bool = False): ...  # type: ignore[no-untyped-def]  # noqa: B006


def varied(first: int, /, *numbers: int, **options: int) -> None: ...


@pytest.mark.parametrize("step", ["dump", "load"])
@pytest.mark.parametrize(
    ("function", "args", "kwargs", "sentence", "kinds"),
    [
        (
            send_email,
            (),
            {},
            "send_email() is missing the argument 'recipient' (and 1 more).",
            ["missing_argument"] * 2,
        ),
        (
            send_email,
            ("a@b.co",),
            {},
            "send_email() is missing the argument 'subject'.",
            ["missing_argument"],
        ),
        (
            send_email,
            ("a@b.co", "s", 1),
            {},
            "send_email() takes 2 positional arguments, but 3 were given.",
            ["unexpected_positional_argument"],
        ),
        (
            send_email,
            ("a@b.co", "s"),
            {"body": "b"},
            "send_email() has no argument 'body'.",
            ["unexpected_keyword_argument"],
        ),
        (
            send_email,
            ("a@b.co", "s"),
            {"subject": "t"},
            "send_email() was given the argument 'subject' twice.",
            ["multiple_argument_values"],
        ),
        (varied, (), {"first": 1}, "varied() is missing the argument 'first'.", ["missing_argument"]),
    ],
)
def test_a_call_that_does_not_fit(
    step: str, function: Any, args: Any, kwargs: Any, sentence: str, kinds: list[str]
) -> None:
    with pytest.raises(InvalidArguments) as caught:
        getattr(schema(function), step)(args, kwargs)
    assert str(caught.value) == sentence
    assert [error["type"] for error in caught.value.errors] == kinds
    assert all({"loc", "msg", "input"} <= error.keys() for error in caught.value.errors)


@pytest.mark.parametrize("step", ["dump", "load"])
@pytest.mark.parametrize(
    ("function", "args", "kwargs", "says", "locations"),
    [
        (
            send_email,
            ("nobody", "s"),
            {},
            r"send_email\(\) does not accept .* 'recipient': value",
            [("recipient",)],
        ),
        (
            send_email,
            ("a@b.co", None),
            {"copies": ["x", "a@b.co", "y"]},
            "'subject'.*and 2 more",
            [("subject",), ("copies", 0), ("copies", 2)],
        ),
        (send_email, ("a@b.co", "s"), {"urgent": "perhaps"}, "'urgent'", [("urgent",)]),
        (varied, (1, 2, "x"), {}, r"'numbers\.1'", [("numbers", 1)]),
        (varied, (1,), {"y": "x"}, "'y'", [("y",)]),
    ],
)
def test_an_argument_that_does_not_fit(
    step: str, function: Any, args: Any, kwargs: Any, says: str, locations: list[Any]
) -> None:
    with pytest.raises(InvalidArguments, match=says) as caught:
        getattr(schema(function), step)(args, kwargs)
    assert [error["loc"] for error in caught.value.errors] == locations
    assert str(caught.value).endswith(".")


def test_the_task_itself_and_injected_parameters_are_not_sent() -> None:
    def task(self: Any, a: int, mailer: Any, b: int = 2) -> None: ...

    typed = schema(task, bound=True, exclude={"mailer"})
    args, kwargs = typed.dump((1, 3), {})
    assert (args, kwargs) == ([1, 3], {})
    # The mailer stands between the two, so the second must go by name where the function is called.
    assert typed.load(args, kwargs) == ((1,), {"b": 3})
    with pytest.raises(InvalidArguments, match=re.escape("task() has no argument 'mailer'.")):
        typed.dump((1,), {"mailer": 1})
    with pytest.raises(InvalidArguments, match="takes 2 positional arguments, but 3 were given"):
        typed.dump((1, 2, 3), {})


def test_an_injected_parameter_that_no_call_can_leave_out_is_refused() -> None:
    def variadic(mailer: Any, *numbers: int) -> None: ...
    def leading(mailer: Any, a: int, /) -> None: ...
    def keyword(*numbers: int, mailer: Any) -> None: ...

    for function in (variadic, leading):
        with pytest.raises(ConfigurationError, match="'mailer' keyword-only"):
            schema(function, exclude=["mailer"])
    assert schema(keyword, exclude=["mailer"]).dump((1, 2), {}) == ([1, 2], {})


def test_arguments_without_annotation_pass_as_they_are() -> None:
    def task(a, b: Any, c: dict, *rest, **more): ...  # type: ignore[no-untyped-def,type-arg]

    values = (WHEN, {"id": UUID(int=7), "blob": b"\xff"}, {"price": Decimal("1.10")}, (1, 2))
    args, kwargs = schema(task).dump(values, {"x": [date(2024, 1, 2)]})
    assert args == list(values)
    # kombu's JSON has forms of its own for these, so they arrive as what they were, on stock workers too.
    sent_args, sent_kwargs = codec.loads(codec.dumps([args, kwargs]))
    assert schema(task).load(sent_args, sent_kwargs) == ((*values[:3], [1, 2]), {"x": [date(2024, 1, 2)]})


def test_arguments_without_annotation_that_json_cannot_take_become_what_comes_closest() -> None:
    def task(a, b=None): ...  # type: ignore[no-untyped-def]

    model = Order(number=1, at=WHEN)
    args, _ = schema(task).dump(
        ({"order": model, "at": WHEN, "tags": {1}, "colour": Colour.RED}, {(1, 2): "x"}), {}
    )
    assert args == [
        {
            "order": {"number": 1, "at": "2024-01-02T03:04:05.000006Z", "lines": []},
            "at": WHEN,
            "tags": [1],
            "colour": "red",
        },
        {"1,2": "x"},
    ]


def test_what_nothing_can_express_is_named() -> None:
    def task(a, b: list, c: Callable[[], int] = int): ...  # type: ignore[no-untyped-def,type-arg]

    for bad in ((object(), []), (1, [object()]), (1, [], int)):
        with pytest.raises(InvalidArguments, match="cannot be sent as JSON") as caught:
            schema(task).dump(bad, {})
        assert len(caught.value.errors) == 1
    around: list[Any] = []
    around.append(around)
    with pytest.raises(InvalidArguments, match="'a'"):
        schema(task).dump((around, []), {})


def test_bytes_that_are_no_text_arrive() -> None:
    args, kwargs = accept(bytes).dump((b"\x00\xff",), {})
    assert accept(bytes).load(*codec.loads(codec.dumps([args, kwargs]))) == ((b"\x00\xff",), {})


class Login(BaseModel):
    name: str
    password: SecretStr | None = None


class SpokenLogin(BaseModel):
    password: Annotated[SecretStr, PlainSerializer(lambda it: it.get_secret_value())]


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (SecretStr, "hidden"),
        (Login, Login(name="ada", password=SecretStr("hidden"))),
        (list[Login], [{"name": "ada", "password": "hidden"}]),
        (Any, Login(name="ada", password=SecretStr("hidden"))),
        (Any, {"key": [SecretStr("hidden")]}),
    ],
)
def test_a_secret_is_refused_rather_than_masked(annotation: Any, value: Any) -> None:
    with pytest.raises(InvalidArguments, match="asterisks"):
        accept(annotation).dump((value,), {})


def test_what_may_hold_a_secret_and_holds_none_arrives() -> None:
    assert accept(Login).dump((Login(name="ada"),), {})[0] == [{"name": "ada", "password": None}]


def test_a_secret_that_says_how_it_is_written_arrives() -> None:
    login = SpokenLogin(password=SecretStr("told"))
    assert accept(SpokenLogin).dump((login,), {})[0] == [{"password": "told"}]
    assert accept(Any).dump((login,), {})[0] == [{"password": "told"}]


def test_annotations_may_be_defined_later_or_not_at_all() -> None:
    def task(a: Later, b: Missing, c: list[Missing], d: object(), e: int) -> Missing: ...  # type: ignore[name-defined,valid-type]  # noqa: F821

    typed = schema(task)
    args, _ = typed.dump(({"number": 1}, {"x": 1}, ["y"], "z", "5"), {})
    assert args == [{"number": 1, "text": ""}, {"x": 1}, ["y"], "z", 5]
    assert typed.load(args, {})[0][0] == Later(number=1)
    assert typed.dump_result(Later(number=2)) == {"number": 2, "text": ""}


def test_classes_that_pydantic_does_not_know_count_as_no_annotation() -> None:
    class Signature(dict[str, Any]):
        def __init__(self, task: str) -> None:
            super().__init__(task=task)

    assert accept(Signature).dump((Signature("t"),), {}) == ([{"task": "t"}], {})


def test_an_annotation_that_pydantic_refuses_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    assert accept(Old).dump(({"a": "x"},), {}) == ([{"a": "x"}], {})
    if sys.version_info < (3, 12):
        assert "typing_extensions.TypedDict" in caplog.text


def test_functions_without_a_signature_take_anything() -> None:
    assert schema(print).dump((1,), {"sep": "x"}) == ([1], {"sep": "x"})
    assert schema(dict.fromkeys).dump(([1], 2), {}) == ([[1], 2], {})


def result_of(function: Callable[..., Any]) -> Callable[[Any], Any]:
    return schema(function).dump_result


def test_results_of_coroutines_and_generators() -> None:
    async def coroutine() -> Colour: ...  # type: ignore[empty-body]
    def returns_coroutine() -> Coroutine[Any, Any, Colour]: ...  # type: ignore[empty-body]
    async def generator() -> AsyncIterator[int]:
        yield 1

    async def long_generator() -> AsyncGenerator[int, None]:
        yield 1

    def returns_generator() -> AsyncIterator[int]: ...  # type: ignore[empty-body]

    for function in (coroutine, returns_coroutine):
        assert result_of(function)(Colour.RED) == "red"
        assert schema(function).load_result("red") is Colour.RED
    for stream in (generator, long_generator, returns_generator):
        assert result_of(stream)(None) is None
        assert schema(stream).load_result(None) is None


def test_a_result_that_does_not_fit_goes_by_its_own_type() -> None:
    typed = accept(Order)
    assert typed.dump_result({1: WHEN}) == {"1": "2024-01-02T03:04:05.000006Z"}
    assert typed.dump_result(Parcel(Decimal(1))) == {"weight": "1", "sent": None}
    assert typed.load_result({"other": 1}) == {"other": 1}
    assert accept(None).dump_result("something") == "something"


def test_a_result_without_annotation_goes_by_its_own_type() -> None:
    def task(): ...  # type: ignore[no-untyped-def]

    assert result_of(task)(Order(number=1, at=WHEN))["number"] == 1
    assert result_of(task)({"at": WHEN}) == {"at": WHEN}


def test_the_result_of_another_task_becomes_its_ids() -> None:
    def task(): ...  # type: ignore[no-untyped-def]

    group = GroupResult("g", [AsyncResult("a"), AsyncResult("b", parent=AsyncResult("p"))])

    dumped = json.loads(codec.dumps(result_of(task)(group)))
    assert result_from_tuple(dumped) == group
    assert dumped == [["g", None], [[["a", None], None], [["b", [["p", None], None]], None]]]


def test_a_result_shows_what_a_response_would() -> None:
    assert accept(Aliased).dump_result(Aliased(written=1))["double"] == 2


def test_a_result_that_nothing_can_express() -> None:
    for annotation in (Any, int):
        with pytest.raises(EncodeError, match=r"task\(\): the result cannot be expressed as JSON"):
            accept(annotation).dump_result(object())


class Old(TypedDict):
    a: str


class Later(BaseModel):
    number: int
    text: str = ""


def test_a_default_that_describes_a_request_is_refused_with_what_to_write_instead() -> None:
    def upload(file: UploadFile = File(), title: str = "") -> None: ...  # noqa: B008

    with pytest.raises(ConfigurationError, match=r"'file' is FastAPI's File\(\).*Annotated\[…, File\(\)\]"):
        ArgumentSchema.from_function(upload, bound=False)
