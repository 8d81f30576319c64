"""What an application's tests, and the makers of brokers and stores, need.

``in_memory`` runs an app's tasks without servers; the fixture ``celery_in_memory`` does the same in pytest.
``celeriac.testing.contract`` has the suites that every broker and every store passes.
"""

from celeriac.testing.calls import EnqueuedCall
from celeriac.testing.tasks import InMemory, InMemoryTasks, SyncInMemoryTasks, in_memory

__all__ = ["EnqueuedCall", "InMemory", "InMemoryTasks", "SyncInMemoryTasks", "in_memory"]
