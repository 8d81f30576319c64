"""``celeriac …`` on the command line: reads arguments, and hands them to who does the work."""

from __future__ import annotations

import sys

import click

from celeriac.dead_letter_commands import dead_letters
from celeriac.dev import supervisor

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="celeriac")
def main() -> None:
    """Celery for FastAPI, asyncio all the way through.

    A worker, a schedule and remote control are Celery's own commands: celery -A MODULE:NAME worker, beat, inspect.
    """


main.add_command(dead_letters)


@main.command()
@click.argument("app", metavar="MODULE:APP")
@click.option(
    "--celery", metavar="MODULE:NAME", help="The Celery app, when MODULE does not name exactly one."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that the API listens on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="Its port.")
@click.option(
    "--reload/--no-reload", default=True, show_default=True, help="Restart all on a change of *.py."
)
@click.option("--beat/--no-beat", default=True, show_default=True, help="Run the schedule.")
@click.option("--concurrency", type=click.IntRange(1), help="Tasks that the worker runs at the same time.")
def dev(
    app: str, celery: str | None, host: str, port: int, reload: bool, beat: bool, concurrency: int | None
) -> None:
    """Run the API, a worker and the schedule in one terminal.

    MODULE:APP is the ASGI application, such as main:app. Its Celery app is the one that MODULE has in a global name.
    """
    options = supervisor.Options(
        app=app, celery=celery, host=host, port=port, reload=reload, beat=beat, concurrency=concurrency
    )
    sys.exit(supervisor.run(options))
