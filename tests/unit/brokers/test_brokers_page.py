"""docs/brokers.md says of each broker what its code says."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from celeriac.brokers.base import Capabilities
from celeriac.brokers.kombu_transports import bridge, source_class
from celeriac.brokers.memory import MemoryBroker
from celeriac.brokers.urls import broker_for

PAGE = (Path(__file__).parents[3] / "docs" / "brokers.md").read_text()

COLUMNS = {
    "delay": "delay",
    "lease": "lease",
    "delivery count": "delivery_count",
    "dead letters": "dead_letters",
    "priority": "priority",
    "in order": "ordered",
    "all or none": "atomic",
    "a megabyte": "any_size",
    "broadcasts": "fanout",
}

URLS = {
    "SQLite": "sqlite:///x.db",
    "Redis": "redis://localhost",
    "RabbitMQ": "amqp://localhost",
    "Amazon SQS": "sqs://",
    "Kafka": "confluentkafka://localhost",
    "ZooKeeper": "zookeeper://localhost/x",
    "SQL by kombu": "sqla+sqlite:///x.db",
    "files": "filesystem://",
    "memory": "memory://x",
    # Any other transport goes the same way; this one's driver is always there.
    "kombu's others": "generic",
}


def table() -> dict[str, dict[str, str]]:
    lines = [
        line for line in PAGE.splitlines() if re.match(r"\| [A-Za-z' ]+ \|( (itself|celeriac|no) \|)+$", line)
    ]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: dict(zip(COLUMNS.values(), cells, strict=True)) for name, *cells in rows}


def capabilities(url: str, folder: Path) -> tuple[Capabilities, Capabilities]:
    """Those of the transport itself, and those of the broker that an app gets."""
    options: dict[str, Any] = {"data_folder_in": str(folder), "data_folder_out": str(folder)}
    if url == "generic":
        from celeriac.brokers.kombu import KombuBroker
        from celeriac.brokers.kombu_sources.generic import GenericSource

        broker = KombuBroker(lambda: GenericSource("memory://"), MemoryBroker("keeper"))
        return GenericSource.capabilities, broker.capabilities
    if url.partition(":")[0] in {"sqlite", "redis", "amqp", "memory"}:
        own = broker_for(url).capabilities
        return own, own
    source = source_class(url)
    return source.capabilities, bridge(url, MemoryBroker("keeper"), options=options).capabilities


def test_the_columns_are_those_of_the_page() -> None:
    assert "| | " + " | ".join(COLUMNS) + " |" in PAGE
    assert table().keys() == URLS.keys()


@pytest.mark.parametrize("name", URLS)
def test_the_page_agrees_with_the_code(name: str, tmp_path: Path) -> None:
    own, whole = (asdict(each) for each in capabilities(URLS[name], tmp_path))
    expected = {
        field: "itself" if own[field] else "celeriac" if whole[field] else "no" for field in COLUMNS.values()
    }
    assert table()[name] == expected
    # The page says that memory alone is limited.
    assert (whole["between_processes"], whole["durable"]) == ((name != "memory",) * 2)
