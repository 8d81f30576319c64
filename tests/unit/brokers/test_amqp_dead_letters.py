"""Dead letters as AMQP has them: what is read of those that somebody else has put there."""

from __future__ import annotations

from typing import Any

import pytest
from aiormq.abc import DeliveredMessage
from pamqp import commands as spec
from pamqp.header import ContentHeader

from celeriac.brokers.amqp_messages import burial, dead_letter
from celeriac.brokers.base import Publication
from celeriac.fastapi.models import DeadLetterOut
from celeriac.protocol.message import Message


def buried(**forged: Any) -> DeliveredMessage:
    message = Message({"id": "1", "task": "shop.bill"}, {}, b"[]")
    header = burial(Publication(message, "celery", task_id="1"), "too often", 5, "letter")
    header["x-celeriac-dead"].update(forged)
    properties = spec.Basic.Properties(headers={**message.headers, **header})
    return DeliveredMessage(spec.Basic.Deliver(), ContentHeader(properties=properties), b"[]", None)  # type: ignore[arg-type]


def test_ours_can_be_shown() -> None:
    letter = dead_letter(buried())
    assert DeadLetterOut.of(letter).deliveries == letter.deliveries == 5


@pytest.mark.parametrize(
    "forged",
    [
        {"at": 2**63 - 1},
        {"at": -(2**63)},
        {"at": float("inf")},
        {"at": float("nan")},
        {"at": "now"},
        {"deliveries": float("inf")},
        {"deliveries": "many"},
        {"deliveries": None},
    ],
    ids=repr,
)
def test_a_forged_one_is_none_of_ours_and_hides_no_others(forged: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no dead letter of ours"):
        dead_letter(buried(**forged))
