"""A kombu message as our channels deliver it."""

from __future__ import annotations

from typing import Any

from kombu import message as kombu_message
from kombu.transport import virtual

from celeriac.protocol import envelope
from celeriac.sql.messages import Taken

__all__ = ["Message"]

_Message: Any = virtual.Message  # whose annotations are only partly there
_BaseMessage: Any = kombu_message.Message


class Message(_Message):  # type: ignore[misc]
    """What consumers get: read by the same reader as in celeriac's own worker, so that both refuse the same."""

    def __init__(self, taken: Taken, channel: Any) -> None:
        """Read an envelope. Raises MalformedMessage."""
        received = envelope.decode(taken.envelope)
        delivery_info = dict(received.properties.get("delivery_info") or {})
        if taken.deliveries > 1:
            delivery_info["redelivered"] = True
        properties = {**received.properties, "delivery_tag": taken.tag, "delivery_info": delivery_info}
        # The class between would decode the body, which has been done.
        _BaseMessage.__init__(
            self,
            body=received.body,
            channel=channel,
            delivery_tag=taken.tag,
            content_type=received.content_type,
            content_encoding=received.content_encoding,
            headers=dict(received.headers),
            properties=properties,
            delivery_info=delivery_info,
            postencode="utf-8",
        )
