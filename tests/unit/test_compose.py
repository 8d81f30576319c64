"""compose.yaml starts what tests start. Nobody has run it here: there is no Docker where this was made."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]

#: A part of another server's module, and none of its own.
NO_SERVERS = {"process", "proxy", "sentinel"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return found


def started_by_tests() -> set[str]:
    """The modules with a class of a server process."""
    found = set()
    for path in (ROOT / "tests" / "services").glob("*.py"):
        classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
        if any(
            isinstance(base, ast.Name) and base.id == "ServerProcess" for c in classes for base in c.bases
        ):
            found.add(path.stem)
    return found - NO_SERVERS


def test_the_servers_are_those_of_the_tests(services: dict[str, Any]) -> None:
    assert set(services) == started_by_tests()


def test_ports_are_of_this_machine_alone(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["ports"], name
        for port in service["ports"]:
            assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), (name, port)


def test_each_says_when_it_is_ready(services: dict[str, Any]) -> None:
    for name, service in services.items():
        check = service["healthcheck"]
        assert check.get("test") or (name == "sqs" and check["disable"]), name


def test_images_have_versions_and_those_of_the_jars_are_the_same(services: dict[str, Any]) -> None:
    for service in services.values():
        assert re.search(r":\d", service["image"]), service["image"]
    for name, jar in (("kafka", "kafka"), ("sqs", "elasticmq")):
        version = re.findall(r"<version>(\d+\.\d+)\.", (ROOT / ".ci" / f"{jar}.xml").read_text())
        assert version
        assert f":{version[0]}." in services[name]["image"]


def test_kafka_tells_clients_of_this_machine_where_it_is(services: dict[str, Any]) -> None:
    assert services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"] == "PLAINTEXT://127.0.0.1:9092"
