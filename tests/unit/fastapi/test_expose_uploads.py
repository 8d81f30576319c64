"""Exposed tasks that take files: their forms, and what is left of a request that was refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, File, Form, Header, UploadFile
from pydantic import BaseModel, Field
from tests.unit.fastapi.conftest import serve

from celeriac import Celery
from celeriac.errors import BrokerUnavailable, ConfigurationError
from celeriac.worker.embedded import run_embedded


@pytest.fixture
async def celery(tmp_path: Path) -> AsyncIterator[Celery]:
    url = f"memory://{tmp_path.name}"
    app = Celery("test", broker=url, backend=url, set_as_current=False)
    app.conf.celeriac_upload_url = str(tmp_path / "uploads")
    app.conf.celeriac_upload_limit = 3_000_000
    async with app:
        yield app


@pytest.fixture
def stored(tmp_path: Path) -> Any:
    folder = tmp_path / "uploads"
    return lambda: sorted(folder.iterdir()) if folder.exists() else []


def exposing(celery: Celery, function: Any) -> FastAPI:
    router = celery.router(insecure=True)
    router.expose(celery.task(name=f"shop.{function.__name__}")(function), "/videos")
    app = FastAPI()
    app.include_router(router, prefix="/tasks")
    return app


class Options(BaseModel):
    codec: str
    rate: int = 1


async def transcode(
    file: UploadFile,
    title: Annotated[str, Field(min_length=2, description="What it is called.")],
    count: int = 1,
    tags: list[str] | None = None,
    options: Options | None = None,
) -> str:
    """Transcode a video."""
    content = (await file.read()).decode()
    return f"{file.filename} {content} {title} {count} {tags} {options and options.codec}"


async def thumbnails(pictures: list[UploadFile], mask: bytes | None = None) -> list[int]:
    return [len(await each.read()) for each in pictures] + [len(mask or b"")]


FILE = {"file": ("a.mov", b"hello", "video/quicktime")}


async def test_a_form_enqueues_a_task_with_its_file(client: Any, celery: Celery, stored: Any) -> None:
    http = client(exposing(celery, transcode))

    form = {"title": "Holiday", "count": "2", "tags": ["a", "b"], "options": '{"codec": "av1"}'}
    answer = await http.post("/tasks/videos", files=FILE, data=form)

    assert answer.status_code == 202, answer.text
    record = (await celery.store.get([answer.json()["task_id"]])).popitem()[1]
    kwargs = dict(record.kwargs or {})
    reference = kwargs.pop("file")["__upload__"]
    assert reference.pop("key")
    assert reference == {"filename": "a.mov", "content_type": "video/quicktime", "size": 5}
    options = {"codec": "av1", "rate": 1}
    assert kwargs == {"title": "Holiday", "count": 2, "tags": ["a", "b"], "options": options}
    assert len(stored()) == 1
    async with run_embedded(celery, concurrency=1):
        status = await http.get(answer.headers["location"], params={"wait": 5})
    assert status.json()["result"] == "a.mov hello Holiday 2 ['a', 'b'] av1"
    assert stored() == []


async def test_what_a_form_leaves_out_is_left_out_of_the_call(client: Any, celery: Celery) -> None:
    answer = await client(exposing(celery, transcode)).post("/tasks/videos", files=FILE, data={"title": "It"})

    record = (await celery.store.get([answer.json()["task_id"]])).popitem()[1]
    assert set(record.kwargs or {}) == {"file", "title"}


async def test_lists_of_files_and_bytes_are_files(client: Any, celery: Celery, stored: Any) -> None:
    http = client(exposing(celery, thumbnails))
    pictures = [("pictures", ("1.png", b"1")), ("pictures", ("2.png", b"22")), ("mask", ("m", b"333"))]

    answer = await http.post("/tasks/videos", files=pictures)

    assert len(stored()) == 3
    async with run_embedded(celery, concurrency=1):
        status = await http.get(answer.headers["location"], params={"wait": 5})
    assert status.json()["result"] == [1, 2, 3]
    assert stored() == []


@pytest.mark.parametrize(
    ("form", "loc", "kind"),
    [
        ({"title": "x"}, ["body", "title"], "string_too_short"),
        ({}, ["body", "title"], "missing"),
        ({"title": "It", "count": "many"}, ["body", "count"], "int_parsing"),
        ({"title": "It", "options": "{}"}, ["body", "options", "codec"], "missing"),
        ({"title": "It", "options": "{"}, ["body", "options"], "json_invalid"),
        ({"title": "It", "colour": "red"}, ["body", "colour"], "extra_forbidden"),
    ],
)
async def test_what_does_not_fit_is_a_422_and_stores_nothing(
    client: Any, celery: Celery, stored: Any, form: dict[str, str], loc: list[str], kind: str
) -> None:
    answer = await client(exposing(celery, transcode)).post("/tasks/videos", files=FILE, data=form)

    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    assert (error["loc"], error["type"]) == (loc, kind)
    assert stored() == []


@pytest.mark.parametrize(
    "body", [{"data": {"title": "It"}}, {"data": {"title": "It", "file": "text"}}, {"json": {}}]
)
async def test_no_file_is_a_422(client: Any, celery: Celery, body: Any) -> None:
    answer = await client(exposing(celery, transcode)).post("/tasks/videos", **body)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "file"]


def test_the_document_offers_a_file(celery: Celery) -> None:
    document = exposing(celery, transcode).openapi()

    operation = document["paths"]["/tasks/videos"]["post"]
    schema = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    body = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    file = body["properties"]["file"]
    assert file["type"] == "string"
    assert file.get("format") == "binary" or file["contentMediaType"] == "application/octet-stream"
    assert body["properties"]["title"]["description"] == "What it is called."
    assert body["properties"]["title"]["minLength"] == 2
    assert body["required"] == ["file", "title"]
    assert "413" in operation["responses"]
    pictures = exposing(celery, thumbnails).openapi()["components"]["schemas"]
    [form] = [each for name, each in pictures.items() if name.startswith("Body_")]
    assert form["properties"]["pictures"]["items"]["type"] == "string"


async def test_more_than_the_limit_is_a_413_before_it_is_read(
    client: Any, celery: Celery, stored: Any
) -> None:
    http = client(exposing(celery, transcode))
    small, large = b"x" * 3_000_001, b"x" * 5_000_000

    for content in (small, large):
        answer = await http.post("/tasks/videos", files={"file": ("a", content)}, data={"title": "It"})
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
        assert "3,000,000 bytes" in answer.json()["detail"]
    assert stored() == []
    assert await celery.queue_size("celery") == 0


async def test_over_a_socket_a_body_without_a_length_is_refused_as_it_comes(
    celery: Celery, stored: Any
) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        while sent < 30_000_000:
            sent += 1_000_000
            yield b"x" * 1_000_000
        yield b"\r\n--x--\r\n"

    async with serve(exposing(celery, transcode)) as server:
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = await server.http.post(f"{server.url}/tasks/videos", content=body(), headers=kind)
        assert answer.status_code == 413
        answer = await server.http.post(f"{server.url}/tasks/videos", files=FILE, data={"title": "It"})
        assert answer.status_code == 202
    assert len(stored()) == 1


async def test_a_client_that_asks_before_sending_is_told_no(celery: Celery, stored: Any) -> None:
    async with serve(exposing(celery, transcode)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"POST /tasks/videos HTTP/1.1\r\nHost: test\r\nContent-Length: 10000000000\r\n"
            b"Expect: 100-continue\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        async with asyncio.timeout(3):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        writer.close()
        await writer.wait_closed()
    assert stored() == []


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(celery: Celery, stored: Any) -> None:
    async with serve(exposing(celery, transcode)) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"POST /tasks/videos HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 100_000
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        answer = await server.http.get(f"{server.url}/tasks")
        assert answer.json()["items"] == []
    assert stored() == []


async def test_a_broker_that_refuses_leaves_nothing(
    client: Any, celery: Celery, stored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: Any) -> None:
        assert len(await asyncio.to_thread(stored)) == 1
        raise BrokerUnavailable

    monkeypatch.setattr(celery.broker, "publish", refuse)

    answer = await client(exposing(celery, transcode)).post("/tasks/videos", files=FILE, data={"title": "It"})

    assert answer.status_code == 503
    assert stored() == []


async def test_a_storage_that_is_gone_is_a_503(client: Any, celery: Celery, tmp_path: Path) -> None:
    (tmp_path / "uploads").write_text("in the way")

    answer = await client(exposing(celery, transcode)).post("/tasks/videos", files=FILE, data={"title": "It"})

    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:celeriac:problem:storage-unavailable"
    assert str(tmp_path) not in answer.text


async def test_a_retry_of_a_task_whose_file_is_gone_is_a_409(
    client: Any, celery: Celery, stored: Any
) -> None:
    async def fail(file: UploadFile) -> None:
        raise ValueError("no")

    http = client(exposing(celery, fail))
    async with run_embedded(celery, concurrency=1):
        task_id = (await http.post("/tasks/videos", files=FILE)).json()["task_id"]
        assert (await http.get(f"/tasks/videos/{task_id}", params={"wait": 5})).status_code == 424
        async with asyncio.timeout(5):
            while await asyncio.to_thread(stored):
                await asyncio.sleep(0.01)

    answer = await http.post(f"/tasks/{task_id}/retry")

    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:celeriac:problem:upload-gone"
    assert "a.mov" in answer.json()["detail"]


async def test_a_route_of_ones_own_enqueues_its_file(celery: Celery, client: Any, stored: Any) -> None:
    task = celery.task(transcode)
    app = FastAPI()
    celery.install(app)

    @app.post("/videos", status_code=202)
    async def take(file: UploadFile, title: Annotated[str, Header()]) -> str:
        return (await task.enqueue(file, title)).id

    http = client(app)
    async with run_embedded(celery, concurrency=1):
        answer = await http.post("/videos", files=FILE, headers={"title": "It"})
        assert await celery.handle(answer.json()).result(5) == "a.mov hello It 1 None None"
    assert stored() == []
    answer = await http.post("/videos", files={"file": b"x" * 3_000_001}, headers={"title": "It"})
    assert answer.status_code == 413


async def test_without_python_multipart_the_error_names_the_extra(
    celery: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celeriac.fastapi.forms.find_spec", lambda name: None)

    with pytest.raises(ConfigurationError, match=r"celeriac\[uploads\]"):
        exposing(celery, transcode)


async def test_a_variadic_parameter_cannot_be_exposed(celery: Celery) -> None:
    async def several(*files: UploadFile) -> None: ...

    with pytest.raises(ConfigurationError, match=r"\*files"):
        exposing(celery, several)


async def test_an_idempotency_key_tells_files_by_their_content(
    client: Any, celery: Celery, stored: Any
) -> None:
    http = client(exposing(celery, transcode))
    key = {"Idempotency-Key": "key"}
    form = {"title": "Holiday"}

    first = await http.post("/tasks/videos", files=FILE, data=form, headers=key)
    again = await http.post("/tasks/videos", files=FILE, data=form, headers=key)
    other = {"file": ("a.mov", b"other", "video/quicktime")}
    conflict = await http.post("/tasks/videos", files=other, data=form, headers=key)

    assert first.status_code == again.status_code == 202, again.text
    assert again.json()["task_id"] == first.json()["task_id"]
    assert conflict.status_code == 409
    assert len(stored()) == 1
    assert await celery.queue_size("celery") == 1


async def test_what_fastapi_says_of_a_parameter_may_stand_in_the_task(client: Any, celery: Celery) -> None:
    async def annotated(
        file: Annotated[UploadFile, File(description="What to play.")],
        title: Annotated[str, Form(max_length=3)],
    ) -> str:
        return title

    app = exposing(celery, annotated)
    http = client(app)

    assert (await http.post("/tasks/videos", files=FILE, data={"title": "It"})).status_code == 202
    refused = await http.post("/tasks/videos", files=FILE, data={"title": "Long"})
    assert refused.json()["detail"][0]["loc"] == ["body", "title"]
    [form] = [s for n, s in app.openapi()["components"]["schemas"].items() if n.startswith("Body_")]
    assert form["properties"]["file"]["description"] == "What to play."
