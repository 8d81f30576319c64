"""The broker contract on SQS, spoken by ElasticMQ."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import Any

import boto3
import pytest
from tests.services import SQSServer

from celeriac.brokers.urls import broker_for
from celeriac.testing.contract.broker import BrokerContract
from celeriac.testing.contract.broker_fixtures import NewBroker, PublishEnvelope


class TestSQS(BrokerContract):
    @pytest.fixture
    def new_broker(self, sqs: SQSServer, sqs_options: dict[str, Any], database_url: str) -> NewBroker:
        return lambda lease: broker_for(sqs.url, lease=lease, options=sqs_options, kept_in=database_url)

    @pytest.fixture
    def publish_envelope(self, sqs: SQSServer, sqs_options: dict[str, Any]) -> PublishEnvelope:
        client = boto3.client(
            "sqs",
            region_name="us-east-1",
            endpoint_url=sqs.endpoint,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )

        def send(queue: str, envelope: str) -> None:
            url = client.get_queue_url(QueueName=sqs_options["queue_name_prefix"] + queue)["QueueUrl"]
            # SQS has no message without a body.
            client.send_message(QueueUrl=url, MessageBody=b64encode(envelope.encode()).decode() or " ")

        async def publish(queue: str, envelope: str) -> None:
            await asyncio.to_thread(send, queue, envelope)

        return publish
