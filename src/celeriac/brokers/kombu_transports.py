"""Which of kombu's transports the bridge knows, what they need, and what they cannot do."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kombu.transport import TRANSPORT_ALIASES

from celeriac.brokers.base import Broker
from celeriac.brokers.kombu_sources.base import Source
from celeriac.brokers.kombu_sources.places import place_of
from celeriac.errors import ConfigurationError

__all__ = [
    "BRIDGED",
    "Transport",
    "bridge",
    "is_bridged",
    "no_broadcasts",
    "shortcomings",
    "source_class",
    "transport_of",
]


@dataclass(frozen=True, slots=True)
class Transport:
    """One transport of kombu's.

    ``source`` is the path of its :class:`~celeriac.brokers.kombu_sources.base.Source`. ``packages`` are the modules
    without which it does not work, ``extra`` is ours that installs them. ``lacks`` completes "This transport …": what
    it cannot do, and ``kept`` is what the keeper has instead; both are said once per process. ``ours`` are options that
    mean something here, and break kombu's own code.
    """

    source: str
    extra: str = ""
    packages: frozenset[str] = frozenset()
    lacks: str = ""
    kept: str = "What workers have taken, delayed tasks and dead letters"
    ours: frozenset[str] = frozenset()


#: What installs a module that is called otherwise.
_DISTRIBUTIONS = {
    "MySQLdb": "mysqlclient",
    "azure": '"kombu[azureservicebus,azurestoragequeues]"',
    "google": '"kombu[gcpubsub]"',
    "pgmq": '"kombu[pgmq]"',
    "psycopg2": "psycopg2-binary",
}

_NO_BROADCASTS = "cannot broadcast, so inspect, control and events reach no worker"
_SQLA = Transport(
    "celeriac.brokers.kombu_sources.sqla:SQLAlchemySource",
    "postgres",
    frozenset({"psycopg"}),
    lacks=_NO_BROADCASTS,
    # kombu hands SQLAlchemy every option that it does not know.
    ours=frozenset({"polling_interval", "visibility_timeout"}),
)
_KAFKA = Transport(
    "celeriac.brokers.kombu_sources.kafka:KafkaSource",
    "kafka",
    frozenset({"confluent_kafka"}),
    lacks=f"{_NO_BROADCASTS}, and it keeps no order by priority",
)

_LIBRARY = re.compile(r"([\w.-]+) library")

#: The transports with a source of their own, by their scheme in lower case.
TRANSPORTS: dict[str, Transport] = {
    "filesystem": Transport(
        "celeriac.brokers.kombu_sources.filesystem:FilesystemSource", lacks="keeps no order by priority"
    ),
    "sqs": Transport(
        "celeriac.brokers.kombu_sources.sqs:SQSSource",
        "sqs",
        frozenset({"boto3", "botocore"}),
        lacks=f"knows no priorities and {_NO_BROADCASTS}",
        kept="What is delayed by more than 15 minutes, and dead letters,",
    ),
    "confluentkafka": _KAFKA,
    "kafka": _KAFKA,
    "sqla": _SQLA,
    "sqlalchemy": _SQLA,
    "zookeeper": Transport(
        "celeriac.brokers.kombu_sources.zookeeper:ZooKeeperSource",
        "zookeeper",
        frozenset({"kazoo"}),
        lacks=_NO_BROADCASTS,
    ),
}

#: Any other transport whose channels are kombu's virtual ones.
_GENERIC = Transport(
    "celeriac.brokers.kombu_sources.generic:GenericSource",
    lacks="may lose a message whose taker is killed in the moment of taking",
)

#: Transports of kombu's that speak AMQP themselves, with what to do instead.
_INSTEAD = {
    "librabbitmq": "write amqp:// for the same server",
    "qpid": "it speaks AMQP 0-10: take another of docs/brokers.md",
}

#: The schemes of brokers that need no bridge.
_NATIVE = frozenset({"memory", "redis", "rediss", "sentinel", "amqp", "amqps", "pyamqp"})

#: Every scheme that the bridge takes.
BRIDGED = frozenset({*TRANSPORTS, *(name.lower() for name in TRANSPORT_ALIASES)} - _NATIVE)


def _scheme(url: str) -> str:
    return url.partition(":")[0].partition("+")[0].lower()


def is_bridged(url: str) -> bool:
    """Whether a broker URL means one of kombu's transports, which only the bridge reaches."""
    return _scheme(url) in BRIDGED


def transport_of(url: str) -> Transport:
    """The transport of a broker URL. Raises ConfigurationError for those that have a better way."""
    scheme = _scheme(url)
    if scheme in _INSTEAD:
        raise ConfigurationError(f"celeriac has no bridge to {scheme}://; {_INSTEAD[scheme]}.")
    return TRANSPORTS.get(scheme, _GENERIC)


def source_class(url: str) -> type[Source]:
    """The class of the source for a URL; imports its driver. Raises ConfigurationError where that is missing."""
    transport = transport_of(url)
    module, _, name = transport.source.partition(":")
    try:
        found: type[Source] = getattr(importlib.import_module(module), name)
        found.load_driver(url)
    except ImportError as exc:
        missing = (exc.name or _named(exc)).partition(".")[0]
        if missing == "celeriac":
            raise
        raise ConfigurationError(_missing(url, transport, missing)) from exc
    return found


def for_kombu(connection: Any, url: str) -> Any:
    """A kombu connection to a bridged URL, without the options that kombu's own transport does not bear."""
    if _scheme(url) == "filesystem":
        _make_folders(connection.transport_options)
    if is_bridged(url) and (ours := transport_of(url).ours):
        options = connection.transport_options
        connection.transport_options = {name: value for name, value in options.items() if name not in ours}
    return connection


def _make_folders(options: Mapping[str, Any]) -> None:
    """Make what kombu's channel reads and writes: remote control may be there before the first message is."""
    for option, default in (("data_folder_in", "data_in"), ("data_folder_out", "data_out")):
        with contextlib.suppress(OSError):  # kombu says what is wrong with it
            Path(options.get(option) or default).mkdir(parents=True, exist_ok=True)


def no_broadcasts(url: str) -> str:
    """Why commands reach no worker over this broker, in one sentence; empty where they do."""
    if not is_bridged(url) or source_class(url).capabilities.fanout:
        return ""
    return (
        f"kombu's {_scheme(url)} transport cannot broadcast, so inspect and control reach no worker; look at the "
        "tasks' records instead, where cancelling works too."
    )


def shortcomings(url: str, kept_in: str) -> str:
    """What this broker cannot do, and where that is made good, in one sentence."""
    transport = transport_of(url)
    return (
        f"kombu's {_scheme(url)} transport {transport.lacks or 'keeps no dead letters'}. {transport.kept} are kept in "
        f"{place_of(kept_in)}."
    )


def bridge(
    url: str, keeper: Broker, *, options: Mapping[str, Any] | None = None, lease: float = 30.0
) -> Broker:
    """The broker of a URL, with a keeper. Neither is open yet. Raises as :func:`source_class` does."""
    source = source_class(url)
    path = "celeriac.brokers.kombu_held:HeldBroker" if source.held else "celeriac.brokers.kombu:KombuBroker"
    module, _, name = path.partition(":")
    broker: Broker = getattr(importlib.import_module(module), name)(
        partial(source, url, options=options, lease=lease), keeper, lease=lease
    )
    return broker


def _named(exc: ImportError) -> str:
    """The package in a sentence of kombu's, which has no other name for it."""
    found = _LIBRARY.search(str(exc))
    return found[1] if found else ""


def _missing(url: str, transport: Transport, missing: str) -> str:
    extra = transport.extra and missing in transport.packages
    package = f'"celeriac[{transport.extra}]"' if extra else _DISTRIBUTIONS.get(missing, missing)
    return f"{_scheme(url)}:// needs the package {missing}: pip install {package}"
