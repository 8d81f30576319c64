"""The events of a task, over HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


def read(answer: httpx.Response, count: int | None = None) -> list[tuple[str, str, str]]:
    """Name, id and data of the events: of as many as asked for, or of all."""
    seen: list[tuple[str, str, str]] = []
    event = {"event": "", "id": "", "data": ""}
    for line in answer.iter_lines():
        key, _, value = line.partition(": ")
        if key in event:
            event[key] = value
        elif not line and event["event"]:
            seen.append((event["event"], event["id"], event["data"]))
            event = {"event": "", "id": "", "data": ""}
            if len(seen) == count:
                break
    return seen


def test_values_come_as_the_task_emits_them(shop: Any) -> None:
    task_id = shop.enqueue("speak", "to be or not to be")
    with shop.http.stream("GET", f"/tasks/{task_id}/events") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = read(answer)

    assert [data for name, _, data in events if name == "value"] == [
        f'"{word}"' for word in ["to", "be", "or", "not", "to", "be"]
    ]
    assert events[-1][0] == "end"


def test_who_comes_back_gets_the_rest(shop: Any) -> None:
    task_id, door = shop.running()
    with shop.http.stream("GET", f"/tasks/{task_id}/events") as answer:
        first = read(answer, 2)
    shop.open(door)
    headers = {"Last-Event-ID": first[-1][1]}
    with shop.http.stream("GET", f"/tasks/{task_id}/events", headers=headers) as answer:
        rest = read(answer)
    with shop.http.stream("GET", f"/tasks/{task_id}/events", params={"after": first[-1][1]}) as answer:
        assert read(answer) == rest
    with shop.http.stream("GET", f"/tasks/{task_id}/events") as answer:
        assert read(answer) == [*first, *rest]


def test_what_is_no_event_id_is_refused(shop: Any) -> None:
    path = f"/tasks/{shop.succeeded()}/events"

    in_header = shop.http.get(path, headers={"Last-Event-ID": "?"})
    in_query = shop.http.get(path, params={"after": "?"})

    assert in_header.json()["detail"][0]["loc"] == ["header", "Last-Event-ID"]
    assert in_query.json()["detail"][0]["loc"] == ["query", "after"]
    assert (in_header.status_code, in_query.status_code) == (422, 422)


def messages(shop: Any, path: str) -> tuple[list[dict[str, Any]], int]:
    """What a WebSocket at the path says, and the code with which it closes."""
    url = str(shop.http.base_url).replace("http", "ws", 1)
    said = []
    with connect(f"{url.rstrip('/')}{path}", open_timeout=20) as socket:
        try:
            while True:
                said.append(json.loads(socket.recv(20)))
        except ConnectionClosed as closed:
            return said, closed.rcvd.code if closed.rcvd else 0


def test_a_websocket_tells_the_same_events(shop: Any) -> None:
    task_id = shop.ended(shop.enqueue("speak", "to be"), "SUCCESS")
    with shop.http.stream("GET", f"/tasks/{task_id}/events") as answer:
        events = [(name, id_ or None, json.loads(data)) for name, id_, data in read(answer)]

    said, code = messages(shop, f"/tasks/{task_id}/ws")
    rest, _ = messages(shop, f"/tasks/{task_id}/ws?after={events[1][1]}")

    assert [(each["event"], each["id"], each["data"]) for each in said] == events
    assert rest == said[2:]
    assert code == 1000


def test_a_websocket_says_what_is_wrong_by_its_code(shop: Any) -> None:
    assert messages(shop, "/tasks/nobody's/ws") == ([], 4404)
    assert messages(shop, f"/tasks/{shop.expired()}/ws") == ([], 4410)
    assert messages(shop, f"/tasks/{shop.succeeded()}/ws?after=?") == ([], 4422)
