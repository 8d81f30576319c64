"""Dependencies that no task can have are refused before any task runs, with a sentence that says what to do."""

import sys
from typing import Annotated, Any
from uuid import uuid4

import pytest
from fastapi import BackgroundTasks, Body, Cookie, Depends, Path, Query, Response, WebSocket

from celeriac import Celery, TaskContext
from celeriac.dependencies import has_open_references, injected_parameters
from celeriac.errors import ConfigurationError


@pytest.fixture
def celery() -> Celery:
    url = f"memory://{uuid4()}"
    return Celery("refused", broker=url, backend=url, set_as_current=False)


def wants_query(skip: int) -> int:
    return skip


def wants_path(item: Annotated[str, Path()]) -> str:
    return item


def wants_cookie(session: Annotated[str, Cookie()]) -> str:
    return session


def wants_body(item: Annotated[dict[str, str], Body()]) -> dict[str, str]:
    return item


def wants_response(response: Response) -> None: ...


def wants_socket(socket: WebSocket) -> None: ...


def wants_background(later: BackgroundTasks) -> None: ...


@pytest.mark.parametrize(
    "dependency, what",
    [
        (wants_query, r"wants_query\(\), which takes a query parameter \('skip'\).*give it a default"),
        (wants_path, r"wants_path\(\), which takes a path parameter \('item'\)"),
        (wants_cookie, r"wants_cookie\(\), which takes a cookie \('session'\)"),
        (wants_body, r"wants_body\(\), which takes part of a request's body \('item'\)"),
        (wants_response, r"wants_response\(\), which takes a Response \('response'\).*remove"),
        (wants_socket, r"wants_socket\(\), which takes a WebSocket \('socket'\).*HTTPConnection"),
        (wants_background, r"wants_background\(\), which takes BackgroundTasks \('later'\).*enqueue a task"),
    ],
)
async def test_what_only_a_request_has_is_refused(celery: Celery, dependency: Any, what: str) -> None:
    def outer(inner: Annotated[Any, Depends(dependency)]) -> Any:
        return inner

    @celery.task(name="shop.work")
    async def work(value: Annotated[Any, Depends(outer)]) -> None: ...

    with pytest.raises(ConfigurationError, match=rf"The task shop\.work depends on {what}"):
        async with celery:
            pass


async def test_a_parameter_of_the_task_itself_is_refused(celery: Celery) -> None:
    @celery.task(name="shop.work")
    async def work(response: Response) -> None: ...

    with pytest.raises(ConfigurationError, match=r"The task shop\.work takes a Response \('response'\)"):
        async with celery:
            pass


async def test_parameters_with_a_default_are_left_at_it(celery: Celery) -> None:
    def page(
        skip: int = 0, limit: Annotated[int, Query(le=100)] = 50, seen: Annotated[str | None, Cookie()] = None
    ) -> list[Any]:
        return [skip, limit, seen]

    @celery.task(name="shop.work")
    async def work(page: Annotated[list[Any], Depends(page)]) -> list[Any]:
        return page

    from celeriac.worker.embedded import run_embedded

    async with celery, run_embedded(celery, concurrency=1):
        assert await (await work.enqueue()).result(5) == [0, 50, None]  # type: ignore[call-arg]


async def test_what_fastapi_refuses_is_told_with_the_tasks_name(celery: Celery) -> None:
    class Unknown:
        """No field, and no dependency."""

    def wants_unknown(value: Unknown) -> None: ...

    @celery.task(name="shop.work")
    async def work(value: Annotated[None, Depends(wants_unknown)]) -> None: ...

    with pytest.raises(
        ConfigurationError, match=r"FastAPI cannot use the dependencies of the task shop\.work"
    ):
        async with celery:
            pass


async def test_a_dependency_that_takes_a_task_context_is_told_how_to_get_one(celery: Celery) -> None:
    def wants_context(context: TaskContext) -> None: ...

    @celery.task(name="shop.work")
    async def work(value: Annotated[None, Depends(wants_context)]) -> None: ...

    with pytest.raises(ConfigurationError, match=r"Depends\(task_context\)"):
        async with celery:
            pass


def test_a_dependency_that_its_annotation_does_not_find_is_refused() -> None:
    def work(value: "Annotated[int, Depends(nowhere)]") -> None: ...  # type: ignore[name-defined] # noqa: F821

    assert has_open_references(work)
    with pytest.raises(ConfigurationError, match=r"work\(\): the annotation of 'value' names what"):
        injected_parameters(work)


def later(value: "Annotated[Later, Depends(make_later)]", number: int) -> None: ...


class Later: ...


def make_later() -> Later:
    return Later()


def test_an_annotation_may_name_what_is_defined_further_down() -> None:
    assert injected_parameters(later) == ("value",)


def test_an_ordinary_function_has_nothing_injected() -> None:
    def work(a: int, b: str = "x", *args: int, **kwargs: Any) -> None: ...

    assert injected_parameters(work) == ()
    assert "fastapi" in sys.modules


if sys.version_info >= (3, 12):

    def test_a_type_alias_is_seen_through() -> None:
        namespace: dict[str, Any] = {}
        exec(  # Python 3.11 cannot read it
            "from typing import Annotated\nfrom fastapi import Depends\n"
            "type Number = Annotated[int, Depends(int)]\ndef work(number: Number): ...\n",
            namespace,
        )
        assert injected_parameters(namespace["work"]) == ("number",)
