"""``celeriac dead-letters …``: the list, and the replay."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from celeriac.app import Celery
from celeriac.brokers.base import DeadLetter
from celeriac.compat import find_app
from celeriac.errors import CeleriacError

__all__ = ["dead_letters"]

T = TypeVar("T")

#: Dead letters that one ``--all`` replays, at most.
_MOST = 10_000

_app = click.option(
    "-A", "--app", "path", required=True, metavar="MODULE:NAME", help="The Celery app, as for `celery -A`."
)
_queue = click.option("--queue", "-Q", help="Those of this queue alone.")


@click.group()
def dead_letters() -> None:
    """Messages that nobody delivers any more: list them, replay them."""


@dead_letters.command("list")
@_app
@_queue
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(1, _MOST), help="At most so many."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_letters(path: str, queue: str | None, limit: int, as_json: bool) -> None:
    """List them, newest first."""
    letters = _run(path, lambda app: app.dead_letters(queue, limit))
    for letter in letters:
        shown = _shown(letter)
        click.echo(json.dumps(shown) if as_json else "  ".join(_printable(value) for value in shown.values()))
    if not letters and not as_json:
        click.echo("There are no dead letters.", err=True)


@dead_letters.command()
@_app
@_queue
@click.option("--all", "everything", is_flag=True, help="All of them, or all of --queue.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
def replay(path: str, queue: str | None, everything: bool, ids: Sequence[str]) -> None:
    """Put dead letters back into their queues; their tasks' records start over.

    ID is what `list` shows first.
    """
    if everything == bool(ids):
        raise click.UsageError("Name dead letters by their ids, or give --all.")
    if queue and not everything:
        raise click.UsageError("--queue goes with --all.")

    async def replayed(app: Celery) -> int:
        chosen: Collection[str] = ids
        if everything:
            chosen = [letter.id for letter in await app.dead_letters(queue, _MOST)]
        return await app.replay_dead_letters(chosen)

    count = _run(path, replayed)
    click.echo(f"{count} replayed.")
    if ids and count < len(set(ids)):
        raise click.ClickException(f"{len(set(ids)) - count} of these ids are no dead letters.")


def _run(path: str, question: Callable[[Celery], Awaitable[T]]) -> T:
    """The answer of the app, or one sentence and exit code 1."""
    app = _load(path)

    async def ask() -> T:
        async with app:
            return await question(app)

    try:
        return asyncio.run(ask())
    except CeleriacError as exc:
        raise click.ClickException(str(exc)) from None


def _load(path: str) -> Celery:
    try:
        app = find_app(path)
    except (ImportError, AttributeError, ValueError) as exc:
        raise click.ClickException(f"There is no Celery app at {path!r}: {exc}") from None
    if not isinstance(app, Celery):
        raise click.ClickException(f"{path!r} is no app of celeriac's: it is {app!r}.")
    return app


def _printable(value: object) -> str:
    """Its text, in one line: whoever has written it must not move a terminal's cursor."""
    text = str(value)
    return text if text.isprintable() else "".join(_escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _shown(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "died_at": datetime.fromtimestamp(letter.at, UTC).isoformat(timespec="seconds"),
        "queue": letter.queue,
        "task": letter.task,
        "task_id": letter.task_id,
        "deliveries": letter.deliveries,
        "reason": letter.reason,
    }
