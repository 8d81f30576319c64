from __future__ import annotations

from celeriac import Celery, TaskRouter
from celeriac.dev.queues import queues_of


def work() -> None: ...


def new_app() -> Celery:
    return Celery("dev", broker="memory://dev", set_as_current=False)


def test_the_queues_of_tasks_and_of_routes_are_read_too() -> None:
    app, tasks = new_app(), TaskRouter(prefix="reports.", queue="slow")
    app.task(name="plain")(work)
    app.task(name="routed")(work)
    tasks.task(name="build")(work)
    app.include_router(tasks)
    app.conf.task_routes = {"routed": {"queue": "far"}}

    assert queues_of(app) == ["celery", "far", "slow"]


def test_a_router_that_looks_at_arguments_is_left_alone() -> None:
    app = new_app()
    app.task(name="plain")(work)
    app.conf.task_routes = [lambda _name, args, *_rest, **_more: {"queue": args[0]}]

    assert queues_of(app) == ["celery"]
