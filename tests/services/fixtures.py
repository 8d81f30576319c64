"""The servers as fixtures."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from tests.services.certificates import Certificates, make_certificates
from tests.services.kafka import KafkaServer, running_kafka
from tests.services.rabbitmq import RabbitMQServer, running_rabbitmq
from tests.services.redis import RedisServer, running_redis
from tests.services.sentinel import RedisSentinel
from tests.services.sqs import SQSServer, running_sqs
from tests.services.zookeeper import ZooKeeperServer, running_zookeeper

__all__ = [
    "certificates",
    "kafka",
    "kafka_queue",
    "kafka_server",
    "rabbitmq",
    "rabbitmq_server",
    "rabbitmq_url",
    "redis_sentinel",
    "redis_server",
    "redis_url",
    "sqs",
    "sqs_options",
    "sqs_server",
    "zookeeper",
    "zookeeper_server",
    "zookeeper_url",
]


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a Redis server that this test run has to itself."""
    with running_redis() as url:
        yield url


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis server that this test has to itself, to do with it what it likes. It keeps nothing over a restart."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_sentinel() -> Iterator[RedisSentinel]:
    """A primary, a replica and a sentinel that this test has to itself."""
    with RedisSentinel() as sentinel:
        yield sentinel


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates for 127.0.0.1 and localhost, by an authority that nobody else trusts."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQServer]:
    """A RabbitMQ server that this test run has to itself; not to be stopped."""
    with running_rabbitmq() as server:
        yield server


@pytest.fixture
def rabbitmq_url(rabbitmq: RabbitMQServer) -> Iterator[str]:
    """The URL of a virtual host that this test has to itself."""
    url = rabbitmq.new_vhost()
    yield url
    rabbitmq.delete_vhost(url)


@pytest.fixture
def rabbitmq_server() -> Iterator[RabbitMQServer]:
    """A RabbitMQ server that this test has to itself, to do with it what it likes."""
    with running_rabbitmq() as server:
        yield server


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaServer]:
    """A Kafka broker that this test run has to itself; not to be stopped."""
    with running_kafka() as server:
        yield server


@pytest.fixture
def kafka_queue() -> str:
    """The name of a queue that this test has to itself: a Kafka broker has one namespace for all."""
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
def kafka_server() -> Iterator[KafkaServer]:
    """A Kafka broker that this test has to itself, to do with it what it likes."""
    with running_kafka() as server:
        yield server


@pytest.fixture(scope="session")
def zookeeper() -> Iterator[ZooKeeperServer]:
    """A ZooKeeper server that this test run has to itself; not to be stopped."""
    with running_zookeeper() as server:
        yield server


@pytest.fixture
def zookeeper_url(zookeeper: ZooKeeperServer) -> str:
    """The URL of a place in ZooKeeper that this test has to itself."""
    return zookeeper.new_chroot()


@pytest.fixture
def zookeeper_server() -> Iterator[ZooKeeperServer]:
    """A ZooKeeper server that this test has to itself, to do with it what it likes."""
    with running_zookeeper() as server:
        yield server


@pytest.fixture(scope="session")
def sqs() -> Iterator[SQSServer]:
    """A server that speaks SQS, which this test run has to itself; not to be stopped."""
    with running_sqs() as server:
        yield server


@pytest.fixture
def sqs_options(sqs: SQSServer) -> dict[str, Any]:
    """``broker_transport_options`` for a place on that server that this test has to itself."""
    return sqs.new_options()


@pytest.fixture
def sqs_server() -> Iterator[SQSServer]:
    """A durable server that speaks SQS, which this test has to itself, to do with it what it likes."""
    with running_sqs(durable=True) as server:
        yield server
