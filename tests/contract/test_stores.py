"""The store contract on every store."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from celeriac.stores.urls import store_for
from celeriac.testing.contract.store import StoreContract
from celeriac.testing.contract.store_fixtures import NewStore


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def new_store(self, request: pytest.FixtureRequest) -> NewStore:
        return lambda expires: store_for(f"memory://{request.node.nodeid}", expires=expires)


class TestSQLiteStore(StoreContract):
    @pytest.fixture
    def new_store(self, tmp_path: Path) -> NewStore:
        return lambda expires: store_for(f"sqlite:///{tmp_path}/celery.db", expires=expires)


class TestRedisStore(StoreContract):
    @pytest.fixture
    def new_store(self, redis_url: str) -> NewStore:
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()
        return lambda expires: store_for(redis_url, expires=expires)
