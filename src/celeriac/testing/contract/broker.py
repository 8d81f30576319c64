"""What every broker must do.

A class of tests for pytest (with pytest-asyncio). Derive from it, and say how to make a broker::

    class TestMyBroker(BrokerContract):
        @pytest.fixture
        def new_broker(self, server):
            return lambda lease: MyBroker(server.url, lease=lease)

Every test wants an empty server. Cases that need what the broker's ``capabilities`` deny are skipped.
"""

from __future__ import annotations

from celeriac.testing.contract.broker_delivery import DeliveryCases
from celeriac.testing.contract.broker_exchanges import ExchangeCases
from celeriac.testing.contract.broker_leases import LeaseCases
from celeriac.testing.contract.broker_settling import SettlingCases
from celeriac.testing.contract.broker_waiting import WaitingCases

__all__ = ["BrokerContract"]


class BrokerContract(DeliveryCases, ExchangeCases, SettlingCases, LeaseCases, WaitingCases):
    """All cases.

    The fixtures to give:

    - ``new_broker``: a function that makes a broker, not yet open, from a lease in seconds; all that it makes in one
      test are clients of one server.
    - ``publish_envelope`` (optional): an async function that puts a text into a queue as it is, for envelopes that no
      client of ours would write.
    """
