"""What every store must do.

A class of tests for pytest (with pytest-asyncio). Derive from it, and say how to make a store::

    class TestMyStore(StoreContract):
        @pytest.fixture
        def new_store(self, server):
            return lambda expires: MyStore(server.url, expires=expires)

Every test wants an empty server.
"""

from __future__ import annotations

from celeriac.testing.contract.store_attempts import AttemptCases
from celeriac.testing.contract.store_cancelling import CancellingCases
from celeriac.testing.contract.store_chords import ChordCases
from celeriac.testing.contract.store_events import EventCases
from celeriac.testing.contract.store_gone import GoneCases
from celeriac.testing.contract.store_keys import KeyCases
from celeriac.testing.contract.store_lists import ListCases
from celeriac.testing.contract.store_transitions import TransitionCases
from celeriac.testing.contract.store_watching import WatchingCases

__all__ = ["StoreContract"]


class StoreContract(
    TransitionCases,
    AttemptCases,
    EventCases,
    WatchingCases,
    CancellingCases,
    ListCases,
    ChordCases,
    KeyCases,
    GoneCases,
):
    """All cases.

    The fixture to give, ``new_store``, is a function that makes a store, not yet open, from the seconds that it keeps
    finished records (``None``: for ever); all that it makes in one test are clients of one server.
    """
