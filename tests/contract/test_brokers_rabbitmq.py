"""The broker contract on RabbitMQ, with quorum queues and with classic ones."""

from __future__ import annotations

import pytest

from celeriac.brokers.amqp import AMQPBroker
from celeriac.brokers.urls import broker_for
from celeriac.testing.contract.broker import BrokerContract
from celeriac.testing.contract.broker_fixtures import NewBroker


class TestQuorumQueues(BrokerContract):
    @pytest.fixture
    def new_broker(self, rabbitmq_url: str) -> NewBroker:
        return lambda lease: broker_for(rabbitmq_url, lease=lease)


class TestClassicQueues(BrokerContract):
    @pytest.fixture
    def new_broker(self, rabbitmq_url: str) -> NewBroker:
        arguments = {"x-max-priority": 9}
        return lambda lease: AMQPBroker(rabbitmq_url, lease=lease, queue_arguments=lambda _: arguments)
