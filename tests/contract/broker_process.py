"""A process that publishes to or consumes from a broker, for tests with several of them.

``publish URL QUEUE PREFIX COUNT`` publishes COUNT messages in small batches and prints "done".
``consume URL QUEUE LEASE`` prints the name of each message it has settled, until one named "stop" comes.
``hold URL QUEUE LEASE COUNT`` takes COUNT messages, prints "holding", and renews them until it is killed.
"""

from __future__ import annotations

import asyncio
import sys

from celeriac.brokers.base import Settlement
from celeriac.brokers.urls import broker_for
from celeriac.protocol.settlement import Action
from celeriac.testing.contract.messages import acknowledged, collect, name_of, publication, receive


def say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


async def publish(url: str, queue: str, prefix: str, count: str) -> None:
    broker = broker_for(url)
    await broker.open()
    for start in range(0, int(count), 10):
        numbers = range(start, min(start + 10, int(count)))
        await broker.publish([publication(f"{prefix}-{n}", queue) for n in numbers])
    await broker.close()
    say("done")


async def consume(url: str, queue: str, lease: str) -> None:
    broker = broker_for(url, lease=float(lease))
    await broker.open()
    stopped = False
    while not stopped:
        deliveries = await receive(broker, 23, [queue])
        if not deliveries:
            await broker.wait([queue])
            continue
        names = [name_of(delivery) for delivery in deliveries]
        stops = [delivery for delivery, name in zip(deliveries, names, strict=True) if name == "stop"]
        stopped = bool(stops)
        settlements = acknowledged(each for each in deliveries if each not in stops[1:])
        settlements += [Settlement(each.tag, Action.REQUEUE) for each in stops[1:]]
        void = await broker.settle(settlements)
        assert not void, void
        say(*(name for name in names if name != "stop"))
    await broker.close()


async def hold(url: str, queue: str, lease: str, count: str) -> None:
    broker = broker_for(url, lease=float(lease))
    await broker.open()
    deliveries = await collect(broker, int(count), [queue])
    say("holding")
    while True:
        await broker.renew([delivery.tag for delivery in deliveries])
        await asyncio.sleep(float(lease) / 5)


if __name__ == "__main__":
    command = {"publish": publish, "consume": consume, "hold": hold}[sys.argv[1]]
    asyncio.run(command(*sys.argv[2:]))
