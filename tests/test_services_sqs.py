"""The servers that speak SQS do to Amazon's own client what they claim to do."""

from __future__ import annotations

from typing import Any

import boto3
from botocore.config import Config
from tests.services import SQSServer


def client_of(server: SQSServer) -> Any:
    return boto3.client(
        "sqs",
        region_name="us-east-1",
        endpoint_url=server.endpoint,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        config=Config(retries={"total_max_attempts": 1}),
    )


def take(client: Any, url: str) -> list[str]:
    answer = client.receive_message(QueueUrl=url, WaitTimeSeconds=5)
    return [each["Body"] for each in answer.get("Messages", [])]


def test_a_session_has_one_server_and_each_test_a_place_on_it(
    sqs: SQSServer, sqs_options: dict[str, Any]
) -> None:
    client = client_of(sqs)
    name = sqs_options["queue_name_prefix"] + "queue"
    assert not client.list_queues(QueueNamePrefix=name).get("QueueUrls")
    url = client.create_queue(QueueName=name)["QueueUrl"]
    client.send_message(QueueUrl=url, MessageBody="one")
    assert take(client, url) == ["one"]


def test_a_durable_one_keeps_messages_over_a_restart_and_a_kill(sqs_server: SQSServer) -> None:
    client = client_of(sqs_server)
    url = client.create_queue(QueueName="queue", Attributes={"VisibilityTimeout": "1"})["QueueUrl"]
    client.send_message(QueueUrl=url, MessageBody="one")
    sqs_server.kill()
    assert not sqs_server.running
    sqs_server.start()
    assert take(client, url) == ["one"]
