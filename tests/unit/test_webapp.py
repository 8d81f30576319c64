"""Which FastAPI app belongs to a Celery app, where nobody has said so."""

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import ModuleType

import pytest
from fastapi import FastAPI

from celeriac import Celery


@pytest.fixture
def module() -> Iterator[ModuleType]:
    made = ModuleType("a_module_with_several_apps")
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


def test_of_several_apps_beside_it_the_one_that_opens_it_is_its_own(module: ModuleType) -> None:
    celery = Celery("several", broker="memory://", set_as_current=False)

    def later() -> None:
        nonlocal setting
        setting = 1

    if False:  # the lifespan below refers to a name that never gets a value
        setting = 0

    @asynccontextmanager
    async def admin_lifespan(app: FastAPI) -> AsyncIterator[int]:
        later()
        yield setting

    module.celery = celery  # type: ignore[attr-defined]
    module.admin = FastAPI(lifespan=admin_lifespan)  # type: ignore[attr-defined]
    module.shop = FastAPI(lifespan=celery.lifespan)  # type: ignore[attr-defined]
    assert celery.web_apps.find() is module.shop
