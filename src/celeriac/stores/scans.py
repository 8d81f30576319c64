"""Reads that may take long, such as a search: beside the database's reading thread, so that nobody waits for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.engine import Connection, Engine

from celeriac.sql import engine as sql_engine

__all__ = ["Scans"]

T = TypeVar("T")


class Scans:
    """Runs reads in threads, on connections of their own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._engine: Engine | None = None

    async def read(self, operation: Callable[[Connection], T]) -> T:
        """Run a read, which sees every write that was done before. Raises BrokerUnavailable."""
        return await asyncio.to_thread(self._run, operation)

    def _run(self, operation: Callable[[Connection], T]) -> T:
        with self._lock:
            if self._engine is None:
                self._engine = sql_engine.create_engine(self._url)
        return sql_engine.read(self._engine, operation)

    async def close(self) -> None:
        """Close the connections; a read that still runs closes its own."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.dispose)
