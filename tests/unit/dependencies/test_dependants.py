"""What FastAPI does not document, and ``celeriac/dependants.py`` relies on: an upgrade that changes it fails here."""

import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Header, Request, Security, params
from fastapi.concurrency import contextmanager_in_threadpool
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_dependant, solve_dependencies
from fastapi.security import HTTPBearer
from fastapi.testclient import TestClient
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from celeriac import dependants
from celeriac.dependants import (
    build,
    dependency_stacks,
    is_injected,
    needs_request,
    overrides_of,
    refusals,
    solve,
)


def test_get_dependant_takes_a_path_and_a_call() -> None:
    parameters = inspect.signature(get_dependant).parameters
    assert {"path", "call"} <= set(parameters)
    required = {name for name, each in parameters.items() if each.default is each.empty}
    assert required == {"path", "call"}


def test_solve_dependencies_takes_what_we_give_it() -> None:
    parameters = inspect.signature(solve_dependencies).parameters
    given = {
        "request",
        "dependant",
        "dependency_overrides_provider",
        "async_exit_stack",
        "embed_body_fields",
    }
    assert given <= set(parameters)
    assert {name for name, each in parameters.items() if each.default is each.empty} <= given


def test_a_dependant_has_the_lists_and_names_that_we_look_through() -> None:
    dependant = Dependant(call=len)
    for name in (
        "path_params",
        "query_params",
        "header_params",
        "cookie_params",
        "body_params",
        "dependencies",
    ):
        assert getattr(dependant, name) == []
    for name in ("response_param_name", "background_tasks_param_name", "websocket_param_name"):
        assert getattr(dependant, name) is None


def test_a_field_says_whether_it_is_required() -> None:
    def dependency(skip: int, limit: int = 10) -> None: ...

    fields = get_dependant(path="", call=dependency).query_params
    assert [(field.name, field.field_info.is_required()) for field in fields] == [
        ("skip", True),
        ("limit", False),
    ]


def test_markers_are_instances_of_these_classes() -> None:
    assert isinstance(Depends(len), params.Depends)
    assert isinstance(Security(len), params.Depends)
    assert isinstance(Header(), params.Header)
    assert issubclass(Request, HTTPConnection)
    assert issubclass(WebSocket, HTTPConnection)


def test_a_signature_that_is_set_is_the_one_that_fastapi_sees() -> None:
    def one() -> int:
        return 1

    number = inspect.Parameter("number", inspect.Parameter.KEYWORD_ONLY, default=Depends(one))
    dependant = build("work", [number])
    assert [sub.name for sub in dependant.dependencies] == ["number"]
    assert list(refusals(dependant)) == []


@pytest.mark.parametrize(
    "annotation, default, expected",
    [
        (Annotated[int, Depends(int)], inspect.Parameter.empty, True),
        (Annotated[int, Security(int)], None, True),
        (Annotated[str, Header()], inspect.Parameter.empty, True),
        (Any, Depends(int), True),
        (Request, inspect.Parameter.empty, True),
        (Annotated[int, "a note"], inspect.Parameter.empty, False),
        (int, 3, False),
        (dict[str, int], inspect.Parameter.empty, False),
    ],
)
def test_what_is_injected(annotation: Any, default: Any, expected: bool) -> None:
    assert is_injected(annotation, default) is expected


async def test_the_stacks_in_the_scope_are_where_clean_up_goes() -> None:
    log: list[str] = []

    async def outer() -> Any:
        yield
        log.append("request")

    async def inner() -> Any:
        yield
        log.append("function")

    parameters = [
        inspect.Parameter("a", inspect.Parameter.KEYWORD_ONLY, default=Depends(outer)),
        inspect.Parameter("b", inspect.Parameter.KEYWORD_ONLY, default=Depends(inner, scope="function")),
    ]
    scope, request_stack, function_stack = dependency_stacks()
    assert isinstance(request_stack, AsyncExitStack)
    request = Request({"type": "http", "headers": [], "query_string": b"", "path_params": {}, **scope})
    async with request_stack:
        async with function_stack:
            values, errors = await solve(build("work", parameters), request, FastAPI(), request_stack)
            assert dict(values) == {"a": None, "b": None}
            assert not errors
            assert log == []
        assert log == ["function"]
    assert log == ["function", "request"]


def test_only_an_app_has_overrides() -> None:
    app = FastAPI()
    assert overrides_of(app) is app
    assert app.dependency_overrides == {}
    assert overrides_of(object()) is None


def test_fastapi_gives_no_request_to_a_dependency_of_a_web_socket() -> None:
    def taker(request: Request) -> str:
        return request.url.path

    def below(path: Annotated[str, Depends(taker)]) -> str:
        return path

    def both(connection: HTTPConnection, x_user: Annotated[str, Header()]) -> str:
        return x_user

    assert needs_request(taker) == needs_request(below) == taker.__qualname__
    assert needs_request(HTTPBearer()) is None
    assert needs_request(both) is None
    for wrong in (taker, below):
        with pytest.raises(TypeError, match="request"):
            _connect(wrong)
    _connect(both)


def _connect(dependency: Any) -> None:
    app = FastAPI()

    @app.websocket("/")
    async def accept(websocket: WebSocket, _: Annotated[Any, Depends(dependency)]) -> None:
        await websocket.accept()
        await websocket.close()

    with TestClient(app).websocket_connect("/", headers={"X-User": "ann"}):
        pass


def test_what_opens_in_a_thread_is_told_apart() -> None:
    def dependency() -> Iterator[None]:
        yield

    cm = contextmanager_in_threadpool(contextmanager(dependency)())
    assert dependants._opens_in_thread(cm)
    assert dependants._opens_in_thread(asynccontextmanager(_around)(cm))
    assert not dependants._opens_in_thread(asynccontextmanager(_around)("something"))


async def _around(inner: Any) -> AsyncIterator[None]:
    yield
