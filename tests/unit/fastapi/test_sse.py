from __future__ import annotations

from fastapi.sse import format_sse_event


def test_fastapi_formats_an_event_as_it_has_since_0_135() -> None:
    told = format_sse_event(data_str='{"a":1}', event="value", id="7", retry=None)

    assert told == b'event: value\ndata: {"a":1}\nid: 7\n\n'
    assert format_sse_event(comment="heartbeat") == b": heartbeat\n\n"
