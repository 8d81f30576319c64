"""The store contract on every store that needs no server."""

from __future__ import annotations

from pathlib import Path

import pytest

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
