"""``python -m tests.acceptance.chaos``: the long version of the attacks, with their figures as a table."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from tests.acceptance.chaos.cancels import cancel_anything
from tests.acceptance.chaos.figures import Figures, table
from tests.acceptance.chaos.kills import kill_anything
from tests.acceptance.chaos.leases import outlive_a_worker
from tests.acceptance.chaos.poison import poison_workers
from tests.acceptance.chaos.rolling import restart_workers
from tests.acceptance.chaos.site import BROKERS, Servers, Site, open_site

#: Seconds for an attack to end its last round, and to count.
_LAST_ROUND = 600.0

Attack = Callable[[Site, random.Random], Awaitable[Figures]]


def attacks(rounds: int | None, rate: float | None) -> dict[int, Attack]:
    """The attack on each promise; ``rounds`` of faults, and tasks a second, in place of the usual numbers."""
    return {
        # A loaded machine may hold up a process for longer than a short lease lasts, which is as if it were dead.
        1: partial(kill_anything, rounds=rounds or 100, lease=5.0, rate=(rate or 50.0) / 2),
        2: partial(outlive_a_worker, rounds=rounds or 4, lease=30.0),
        3: partial(poison_workers, rounds=rounds or 3, lease=1.0, limit=3),
        4: partial(restart_workers, rounds=rounds or 100, rate=rate or 30.0),
        7: partial(cancel_anything, rounds=rounds or 9, lease=5.0),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos ARGS=…", description=__doc__)
    parser.add_argument("--seed", default=str(int(time.time())), help="of all that is left to chance")
    parser.add_argument("--promise", type=int, action="append", help="attack this one alone; may be repeated")
    parser.add_argument(
        "--broker", choices=BROKERS, action="append", help="over this one alone; may be repeated"
    )
    parser.add_argument("--rate", type=float, help="tasks a second that are enqueued, where that matters")
    parser.add_argument("--rounds", type=int, help="faults of each attack")
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="after which an attack begins no new round"
    )
    parser.add_argument("--keep", type=Path, help="a folder for the logs; otherwise they are deleted")
    return parser.parse_args()


async def _attack(
    options: argparse.Namespace, servers: Servers, broker: str, promise: int, attack: Attack
) -> Figures:
    chance = random.Random(f"{options.seed} {broker} {promise}")
    with tempfile.TemporaryDirectory(prefix="celeriac-chaos-") as temporary:
        folder = (options.keep or Path(temporary)) / f"{broker}-{promise}"
        try:
            async with open_site(broker, folder, servers) as site:
                site.until = time.monotonic() + 60 * options.minutes
                async with asyncio.timeout(60 * options.minutes + _LAST_ROUND):
                    return await attack(site, chance)
        except Exception as exc:  # noqa: BLE001 - one attack that cannot be finished keeps no other from it
            figures = Figures(promise, broker)
            figures.broken.append(f"the attack ended with {exc!r}")
            return figures


async def _run(options: argparse.Namespace) -> list[Figures]:
    found: list[Figures] = []
    print(f"seed {options.seed}", flush=True)  # noqa: T201
    with Servers() as servers:
        for promise, attack in attacks(options.rounds, options.rate).items():
            for broker in options.broker or BROKERS:
                if promise in (options.promise or (promise,)):
                    figures = await _attack(options, servers, broker, promise, attack)
                    found.append(figures)
                    print("\n".join([*figures.complaints(), " ".join(figures.row())]), flush=True)  # noqa: T201
    return found


def main() -> int:
    """Attack, print the table, and say by the exit code whether all was kept."""
    figures = asyncio.run(_run(_arguments()))
    print(f"\n{table(figures)}")  # noqa: T201
    return 0 if all(each.kept for each in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
