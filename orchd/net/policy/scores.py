"""Peers that do wrong are banned for a while, and places that many of those come from.

Every offence adds to the score of the peer, and a share of it to that of the place (an IP address; the /64 of IPv6)
that it comes from, so that new keys are no new start, and one liar behind a shared address does not cost its
neighbours anything. Scores halve every ten minutes. Who reaches the limit is banned, longer each time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

from orchd.net.policy.rates import Bucket

#: The score at which a subject is banned, and the time in which one halves, in seconds.
LIMIT, HALF_LIFE_S = 100.0, 600.0
#: The part of an offence that counts for the place.
PLACE_SHARE = 0.2
#: The first ban's length, doubling to the longest, in seconds; how long a ban counts as the one before.
BAN_S, BAN_MAX_S, MEMORY_S = 600.0, 86_400.0, 172_800.0
#: Subjects that are remembered.
SUBJECTS = 8192

K = TypeVar("K", bound=Hashable)


class Offence(IntEnum):
    """What a peer did wrong, by how much it counts. To be silent or slow is none: a starved machine is that, too, and
    whoever waits for it gives it up by itself."""

    #: Bytes or records that are not what their author signed: nobody does this by mistake.
    LIED = 100
    #: What the protocol does not allow: once may be a fault of the software, twice within minutes is too much.
    MALFORMED = 55
    #: It went on and on after it was told to wait.
    FLOODED = 20


@dataclass(frozen=True)
class Ban:
    """`subject` is a peer id or a place; `until` in seconds of the clock that `blame` was given."""

    subject: str
    until: float
    reason: str


@dataclass
class _Record:
    score: float = 0.0
    at: float = 0.0
    bans: int = 0
    ban: Ban | None = None


class Scores:
    """Times are seconds of any one clock that does not run backwards."""

    def __init__(self, subjects: int = SUBJECTS) -> None:
        self._records: dict[str, _Record] = {}
        self._subjects = subjects

    def blame(self, peer: str, place: str, offence: Offence, reason: str, now: float) -> list[Ban]:
        """The bans that follow. `place` is empty where it says nothing, as on one's own machine."""
        shares = [(peer, float(offence))] + ([(place, offence * PLACE_SHARE)] if place else [])
        return [ban for subject, points in shares if (ban := self._add(subject, points, reason, now))]

    def _add(self, subject: str, points: float, reason: str, now: float) -> Ban | None:
        if subject not in self._records:
            self._make_room(now)
        record = self._records.setdefault(subject, _Record(at=now))
        if _is_banned(record, now):
            return None
        if record.ban and now - record.ban.until > MEMORY_S:
            record.bans = 0
        record.score, record.at = _decayed(record, now) + points, now
        if record.score < LIMIT:
            return None
        record.ban = Ban(subject, now + min(BAN_S * 2**record.bans, BAN_MAX_S), reason)
        record.bans += 1
        record.score = 0.0
        return record.ban

    def is_banned(self, subject: str, now: float) -> bool:
        record = self._records.get(subject)
        return record is not None and _is_banned(record, now)

    def score(self, subject: str, now: float) -> float:
        record = self._records.get(subject)
        return _decayed(record, now) if record else 0.0

    def bans(self, now: float) -> list[Ban]:
        """Those in force."""
        return [record.ban for record in self._records.values() if record.ban and _is_banned(record, now)]

    def forgive(self, subject: str) -> None:
        """Start over with a subject."""
        self._records.pop(subject, None)

    def _make_room(self, now: float) -> None:
        """When the table is full, what matters least goes: a quarter of it, so that this is seldom."""
        if len(self._records) < self._subjects:
            return

        def weight(subject: str) -> tuple[bool, int, float]:
            record = self._records[subject]
            return _is_banned(record, now), record.bans, _decayed(record, now)

        for subject in sorted(self._records, key=weight)[: max(1, self._subjects // 4)]:
            del self._records[subject]


class Floods(Generic[K]):
    """Who is told to wait and does not. So many refusals a second, and at once, are nobody's fault."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._patience: OrderedDict[K, Bucket] = OrderedDict()

    def refused(self, peer: K, now: float) -> bool:
        """One thing more was refused; whether that is too much. After that the counting begins again."""
        if peer not in self._patience:
            self._patience[peer] = Bucket(self._rate, self._burst, now)
            if len(self._patience) > SUBJECTS:
                self._patience.popitem(last=False)
        self._patience.move_to_end(peer)
        if self._patience[peer].take(now):
            return False
        del self._patience[peer]
        return True


def _decayed(record: _Record, now: float) -> float:
    return record.score * math.exp2((record.at - now) / HALF_LIFE_S)


def _is_banned(record: _Record, now: float) -> bool:
    return record.ban is not None and now < record.ban.until
