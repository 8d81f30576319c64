"""Chords in Redis: under the keys of Celery's own backend, counted by its scripts, so that stock workers share them.

For a group: ``.s`` its size, ``.t`` what ``add_to_chord`` has added, ``.j`` the parts that are done, ``.d`` which these
are, ``.c`` who has claimed the chord, or ``done``, and the key of the group itself the structure of a complex header
(``celery/backends/redis.py``).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple
from uuid import uuid4

from celery import states
from celery.backends.base import decompress_payload

from celeriac.errors import StoreUnavailable
from celeriac.redis.link import Link
from celeriac.redis.scripts import Script
from celeriac.stores.chords import REMEMBERED, ChordClaim, ChordPart
from celeriac.stores.redis_errors import store_errors
from celeriac.stores.redis_layout import clean

__all__ = ["ChordKeys", "ChordTimes", "RedisChords"]


#: Parts that one script adds at most, so that others have their turn.
_ADDED = 250

_PARTS = Script.load("celeriac.stores", "lua/chord_parts.lua")


class _Scripts(NamedTuple):
    add: Script
    cleanup: Script
    extend: Script


@cache
def _scripts() -> _Scripts:
    """Celery's scripts. Reads modules when it is called for the first time."""
    from celery.backends import redis as stock

    return _Scripts(
        # Once for many parts: as a function, which sees the keys and arguments of one part under the names it expects.
        _script(
            "chord parts",
            f"local function count_part(KEYS, ARGV)\n{stock.CHORD_PART_RETURN_LUA}\nend\n{_PARTS.text}",
        ),
        _script("chord cleanup", stock.CHORD_CLEANUP_LUA),
        _script("chord claim extend", stock.CHORD_CLAIM_EXTEND_LUA),
    )


def _script(name: str, text: str) -> Script:
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_EXTEND = _script(
    "chord extension",
    "if redis.call('SET', KEYS[2], 1, 'NX', 'EX', ARGV[2]) then redis.call('INCRBY', KEYS[1], ARGV[1]) end return 1",
)

#: Seconds that an extension is remembered at least: as long as somebody may try again to confirm it.
_EXTENSION_KEPT = 86_400


class ChordKeys:
    """The keys of one group."""

    __slots__ = ("added", "claim", "group", "parts", "seen", "size")

    def __init__(self, prefix: str, group_id: str) -> None:
        self.group = f"{prefix}celery-taskset-meta-{group_id}"
        self.parts = f"{self.group}.j"
        self.added = f"{self.group}.t"
        self.size = f"{self.group}.s"
        self.seen = f"{self.group}.d"
        self.claim = f"{self.group}.c"


@dataclass(frozen=True, slots=True)
class ChordTimes:
    """Whole seconds for Redis; zero is for ever."""

    kept: int
    group_kept: int
    claim: int

    @classmethod
    def of(cls, expires: float | None, chords_kept: float | None, claim: float) -> ChordTimes:
        """From what the store says."""
        kept, records = _whole(chords_kept), _whole(expires)
        # As RedisBackend._chord_result_expires: users read a saved group, too.
        return cls(kept, max(kept, records) if kept and records else 0, max(1, math.ceil(claim)))

    @property
    def remembered(self) -> int:
        """How long a chord is remembered as done."""
        return int(max(self.claim * 2, REMEMBERED))


def _whole(seconds: float | None) -> int:
    return 0 if not seconds else max(1, int(seconds))


class RedisChords:
    """Chords behind a link. Raises StoreUnavailable."""

    def __init__(self, prefix: str, options: Mapping[str, Any]) -> None:
        self._prefix = prefix
        self._ordered = bool(options.get("result_chord_ordered", True))
        #: Tokens of claims whose fate is not known, because the answer was lost; and until when they matter.
        self._uncertain: dict[str, tuple[str, float]] = {}

    def _keys(self, group_id: str) -> ChordKeys:
        return ChordKeys(self._prefix, group_id)

    async def set_size(self, link: Link, group_id: str, size: int, times: ChordTimes) -> None:
        """``RedisBackend.set_chord_size``."""
        keys = self._keys(group_id)
        await _all([link.send("DEL", keys.claim), link.send("SET", keys.size, size, *_expiry(times.kept))])

    async def save_header(self, link: Link, group_id: str, header: str, times: ChordTimes) -> None:
        """What ``RedisBackend.apply_chord`` saves, and ``GroupResult.restore`` reads."""
        text = f'{{"result": {header}}}'
        await _all([link.send("SET", self._keys(group_id).group, text, *_expiry(times.kept))])

    async def extend(self, link: Link, group_id: str, by: int, token: str | None, times: ChordTimes) -> None:
        """``RedisBackend.add_to_chord``; with a token, once."""
        added = self._keys(group_id).added
        if token is None:
            await _all([link.send("INCRBY", added, by)])
        else:
            kept = max(times.kept, times.remembered, _EXTENSION_KEPT)
            await _all([link.start(_EXTEND, [added, f"{added}:{token}"], [by, kept])])

    async def add(self, link: Link, parts: Sequence[ChordPart], times: ChordTimes) -> list[ChordClaim]:
        """The first half of ``RedisBackend.on_chord_part_return``, for many parts in one round trip."""
        if not parts:
            return []
        scripts = await _loaded()
        token = uuid4().hex
        slices = [parts[start : start + _ADDED] for start in range(0, len(parts), _ADDED)]
        try:
            answers = await _all(
                [link.start(scripts.add, (), self._counting(each, times, token)) for each in slices]
            )
            won = {group.decode(): token for claimed, _ in answers for group in claimed}
            held = {group.decode() for _, held in answers for group in held} - won.keys()
            return await self._claims(link, {**won, **await self._recovered(link, held, times)})
        except (StoreUnavailable, asyncio.CancelledError):
            self._remember({part.group_id for part in parts}, token, times)
            raise

    def _counting(self, parts: Sequence[ChordPart], times: ChordTimes, token: str) -> list[Any]:
        ordered = "1" if self._ordered else "0"
        prefix = ChordKeys(self._prefix, "").group
        arguments: list[Any] = [prefix, ordered, times.kept, times.group_kept, times.claim, token]
        for part in parts:
            arguments += (
                part.group_id,
                part.task_id,
                "+inf" if part.index is None else part.index,
                clean(f"[1, {json.dumps(part.task_id)}, {json.dumps(part.state)}, {part.result}]"),
            )
        return arguments

    def _remember(self, group_ids: set[str], token: str, times: ChordTimes) -> None:
        now = time.monotonic()
        self._uncertain = {group: kept for group, kept in self._uncertain.items() if kept[1] > now}
        for group_id in group_ids:
            self._uncertain.setdefault(group_id, (token, now + times.claim))

    async def _recovered(self, link: Link, held: Collection[str], times: ChordTimes) -> dict[str, str]:
        """Chords that are claimed already, but by a token of ours whose answer was lost."""
        # Taken out before anything is awaited: two calls at once must not both think that they hold a chord.
        known = {group_id: self._uncertain.pop(group_id) for group_id in held if group_id in self._uncertain}
        asked = [self._hold(link, group_id, token, times) for group_id, (token, _) in known.items()]
        try:
            answers = await _all(asked)
        except (StoreUnavailable, asyncio.CancelledError):
            self._uncertain |= known
            raise
        pairs = zip(known.items(), answers, strict=True)
        return {group_id: token for (group_id, (token, _)), answer in pairs if answer == 1}

    def _hold(self, link: Link, group_id: str, token: str, times: ChordTimes) -> asyncio.Future[Any]:
        keys = self._keys(group_id)
        return link.start(_scripts().extend, [keys.claim, keys.size], [token, times.claim])

    async def _claims(self, link: Link, tokens: Mapping[str, str]) -> list[ChordClaim]:
        asked: list[asyncio.Future[Any]] = []
        for group_id in tokens:
            keys = self._keys(group_id)
            if self._ordered:
                asked.append(link.send("ZRANGE", keys.parts, 0, -1, "WITHSCORES"))
            else:
                asked.append(link.send("LRANGE", keys.parts, 0, -1))
            asked.append(link.send("GET", keys.group))
        answers = await _all(asked)
        return [
            ChordClaim(
                group_id, token, self._parts(group_id, answers[2 * number]), _header(answers[2 * number + 1])
            )
            for number, (group_id, token) in enumerate(tokens.items())
        ]

    def _parts(self, group_id: str, answer: Sequence[bytes]) -> list[ChordPart]:
        if not self._ordered:
            return [_part(group_id, text, None) for text in answer]
        pairs = zip(answer[::2], answer[1::2], strict=True)
        return [
            _part(group_id, text, None if score == b"inf" else int(float(score))) for text, score in pairs
        ]

    async def claimed(self, link: Link, group_ids: Sequence[str]) -> set[str]:
        """Which of these are claimed now, by anybody."""
        if not group_ids:
            return set()
        (claims,) = await _all([link.send("MGET", *(self._keys(group_id).claim for group_id in group_ids))])
        return {
            group_id
            for group_id, claim in zip(group_ids, claims, strict=True)
            if claim not in (None, b"done")
        }

    async def finish(self, link: Link, claim: ChordClaim, times: ChordTimes) -> bool:
        """The second half of ``RedisBackend.on_chord_part_return``: hold the claim still, and clean up."""
        scripts = await _loaded()
        keys = self._keys(claim.group_id)
        held = self._hold(link, claim.group_id, claim.token, times)
        cleaned = link.start(
            scripts.cleanup,
            [keys.claim, keys.parts, keys.added, keys.size, keys.seen],
            [claim.token, times.remembered],
        )
        _, done = await _all([held, cleaned])
        return bool(done == 1)


async def _loaded() -> _Scripts:
    # In a thread, the first time: it may be the first to import Celery's backend.
    return _scripts() if _scripts.cache_info().currsize else await asyncio.to_thread(_scripts)


async def _all(started: Sequence[asyncio.Future[Any]]) -> list[Any]:
    with store_errors():
        return [await each for each in started]


def _expiry(seconds: int) -> tuple[Any, ...]:
    return ("EX", seconds) if seconds else ()


# What both sides write: [1, task id, state, result].
_STRING = r'"(?:[^"\\]|\\.)*"'
_PART = re.compile(rf"\s*\[\s*1\s*,\s*({_STRING})\s*,\s*({_STRING})\s*,\s*(.*\S)\s*\]\s*", re.DOTALL)


def _part(group_id: str, written: bytes, index: int | None) -> ChordPart:
    text = decompress_payload(written)  # stock workers may have result_compression
    match = _PART.fullmatch(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)
    if match is None:
        return ChordPart(group_id, "", index, states.FAILURE, _unreadable(group_id))
    task_id, state, result = match.groups()
    return ChordPart(group_id, json.loads(task_id), index, json.loads(state), result)


def _unreadable(group_id: str) -> str:
    reason = f"A worker has written its part of chord {group_id} with another result_serializer than json."
    return json.dumps({"exc_type": "ValueError", "exc_message": [reason], "exc_module": "builtins"})


def _header(written: bytes | None) -> str | None:
    if written is None:
        return None
    return json.dumps(json.loads(decompress_payload(written))["result"])
