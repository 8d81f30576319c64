"""Servers that tests need: started here on a free port of the loopback interface, never assumed to run.

A server that is not installed skips the tests that need it, and fails them under ``REQUIRE_SERVICES=1``.
The fixtures among these names become known by importing them into a conftest.py.
"""

from __future__ import annotations

from tests.services.certificates import Certificates, make_certificates
from tests.services.fixtures import (
    certificates,
    kafka,
    kafka_queue,
    kafka_server,
    rabbitmq,
    rabbitmq_server,
    rabbitmq_url,
    redis_sentinel,
    redis_server,
    redis_url,
    sqs,
    sqs_options,
    sqs_server,
    zookeeper,
    zookeeper_server,
    zookeeper_url,
)
from tests.services.kafka import KafkaServer
from tests.services.ports import ReservedPort
from tests.services.programs import missing, program
from tests.services.proxy import Proxy
from tests.services.rabbitmq import RabbitMQServer
from tests.services.redis import RedisServer, running_redis
from tests.services.sentinel import RedisSentinel
from tests.services.sqs import SQSServer
from tests.services.zookeeper import ZooKeeperServer

__all__ = [
    "Certificates",
    "KafkaServer",
    "Proxy",
    "RabbitMQServer",
    "RedisSentinel",
    "RedisServer",
    "ReservedPort",
    "SQSServer",
    "ZooKeeperServer",
    "certificates",
    "kafka",
    "kafka_queue",
    "kafka_server",
    "make_certificates",
    "missing",
    "program",
    "rabbitmq",
    "rabbitmq_server",
    "rabbitmq_url",
    "redis_sentinel",
    "redis_server",
    "redis_url",
    "running_redis",
    "sqs",
    "sqs_options",
    "sqs_server",
    "zookeeper",
    "zookeeper_server",
    "zookeeper_url",
]
