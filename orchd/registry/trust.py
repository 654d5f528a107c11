"""Whom this node trusts: verdicts on authors and peers, keys that changed, and what the policies make of it.

A verdict is about a *person*: a key rotation that both keys have signed hands it on to the new key, and a block reaches
back too. `View` is one moment's picture and pure; `TrustBook` keeps it current.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import msgspec

from orchd.identity import author_text
from orchd.records import Attestation, KeyRotation, verify
from orchd.registry.local import Local
from orchd.registry.local_rows import Received, Setting, Trust

FOLLOW, ALLOW, BLOCK = "follow", "allow", "block"
AUTHOR, PEER = "author", "peer"
#: Kinds of `Received`. A `manifest` only proves who made an adapter that is not here.
REVOCATION, ATTESTATION, ROTATION, EQUIVOCATION = "revocation", "attestation", "rotation", "equivocation"
MANIFEST = "manifest"
SELF, FOLLOWED, ALLOWED, STRANGER, BLOCKED = "self", "followed", "allowed", "stranger", "blocked"
_LEVELS = {FOLLOW: FOLLOWED, ALLOW: ALLOWED, BLOCK: BLOCKED}
#: Most distinct followed authors that a policy may ask for.
MOST_ATTESTATIONS = 100
#: Metrics of which more is better; of all others less is.
MORE_IS_BETTER = frozenset({"exact_match"})


class Policies(msgspec.Struct, frozen=True, kw_only=True):
    """What is decided without asking.

    `auto_fetch` is off or followed, `quarantine` off or strangers; `attestations`: how many distinct followed authors
    must have measured an adapter, and found it no worse than the base, before it is admitted (0: none).
    """

    auto_fetch: str = "off"
    quarantine: str = "off"
    attestations: int = 0


CHOICES = {"auto_fetch": ("off", "followed"), "quarantine": ("off", "strangers")}
PREFIX = "policy."


class Opinion(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict by the user on one key."""

    verdict: str
    auto_update: bool = False


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One person's key changed, says a rotation; times in milliseconds since 1970."""

    old: str
    new: str
    created: int
    received: int = 0


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """An attestation, as far as it decides anything."""

    adapter: str
    author: str
    metric: str
    value: int
    base_value: int | None

    @property
    def speaks_for_it(self) -> bool:
        """No worse than the base, where the base was measured too."""
        if self.base_value is None:
            return True
        if self.metric in MORE_IS_BETTER:
            return self.value >= self.base_value
        return self.value <= self.base_value


@dataclass(frozen=True)
class View:
    """Everything that decides about authors, at one moment. `me` is this node's newest key."""

    me: str
    opinions: Mapping[str, Opinion] = field(default_factory=dict)
    changes: Sequence[Change] = ()
    equivocators: frozenset[str] = frozenset()
    measured: Sequence[Measured] = ()
    #: Adapters that somebody has measured, whatever the policies are.
    attested: frozenset[str] = frozenset()
    policies: Policies = field(default_factory=Policies)

    # ---- people ----------------------------------------------------------------------------------------------

    @cached_property
    def contested(self) -> frozenset[str]:
        """Keys that name two heirs: one of them is an impostor's, so neither inherits anything."""
        heirs = defaultdict(set)
        for change in self.changes:
            heirs[change.old].add(change.new)
        return frozenset(old for old, new in heirs.items() if len(new) > 1)

    @cached_property
    def _heirs(self) -> dict[str, str]:
        return {change.old: change.new for change in self.changes if change.old not in self.contested}

    @cached_property
    def _people(self) -> dict[str, frozenset[str]]:
        """Every key that was ever rotated, with all keys of its person."""
        people: dict[str, set[str]] = {}
        for old, new in self._heirs.items():
            joined = people.get(old, {old}) | people.get(new, {new})
            for key in joined:
                people[key] = joined
        return {key: frozenset(keys) for key, keys in people.items()}

    def keys_of(self, author: str) -> frozenset[str]:
        """All keys of the person that this key belongs to."""
        return self._people.get(author, frozenset({author}))

    def same(self, author: str, other: str) -> bool:
        """Whether two keys are one person's."""
        return other in self.keys_of(author)

    def newest(self, author: str) -> str:
        """The key that this person signs with now."""
        seen = {author}
        while (heir := self._heirs.get(author)) is not None and heir not in seen:
            seen.add(heir)
            author = heir
        return author

    def retired(self, author: str) -> int | None:
        """When a key was given up, in milliseconds; None for one that is in use."""
        times = [change.created for change in self.changes if change.old == author]
        return min(times) if times and author not in self.contested else None

    # ---- verdicts --------------------------------------------------------------------------------------------

    def opinion(self, author: str) -> Opinion | None:
        """The verdict on a person: a block of any of its keys, else what was said of this key, else of another."""
        of_person = [self.opinions[key] for key in sorted(self.keys_of(author)) if key in self.opinions]
        blocks = [opinion for opinion in of_person if opinion.verdict == BLOCK]
        if blocks:
            return blocks[0]
        return self.opinions.get(author) or next(iter(of_person), None)

    def level(self, author: str) -> str:
        """self, followed, allowed, stranger or blocked."""
        if self.same(author, self.me):
            return SELF
        opinion = self.opinion(author)
        return STRANGER if opinion is None else _LEVELS[opinion.verdict]

    def blocked(self, author: str) -> str:
        """Why nothing of this author comes in; empty when it may."""
        if self.level(author) != BLOCKED:
            return ""
        direct = self.opinions.get(author)
        if direct is not None and direct.verdict == BLOCK:
            return f"its author {author} is blocked here"
        return f"its author {author} is blocked here under another key"

    def equivocated(self, author: str) -> bool:
        """Whether the author has been caught telling different nodes different things."""
        return any(key in self.equivocators for key in self.keys_of(author)) or author in self.contested

    def followed(self) -> frozenset[str]:
        """The newest keys of those who are followed."""
        return frozenset(
            self.newest(key)
            for key, opinion in self.opinions.items()
            if opinion.verdict == FOLLOW and self.level(key) == FOLLOWED
        )

    # ---- policies --------------------------------------------------------------------------------------------

    @cached_property
    def _attesters(self) -> dict[str, set[str]]:
        """By adapter, the people that speak for it and are followed."""
        found: dict[str, set[str]] = defaultdict(set)
        followed = self.followed()
        for one in self.measured:
            person = self.newest(one.author)
            if one.speaks_for_it and person in followed and not self.equivocated(person):
                found[one.adapter].add(person)
        return found

    def attesters(self, adapter: str, author: str) -> frozenset[str]:
        """Followed authors other than its own who have measured an adapter and found it no worse than the base."""
        return frozenset(person for person in self._attesters.get(adapter, ()) if not self.same(person, author))

    def policy_reason(self, author: str, adapter: str) -> str:
        """Why the policies keep an adapter in quarantine; empty when they don't. Own adapters are never kept there."""
        level = self.level(author)
        if level == SELF:
            return ""
        reasons = []
        if self.policies.quarantine == "strangers" and level == STRANGER:
            reasons.append("its author is a stranger, and strangers are quarantined here")
        wanted = self.policies.attestations
        if wanted and (found := len(self.attesters(adapter, author))) < wanted:
            reasons.append(f"{found} of {wanted} followed authors attest it")
        return "; ".join(reasons)


def policies_of(settings: Iterable[tuple[str, str]]) -> Policies:
    """From keys and values as they are kept; what is unknown or out of range counts as the default."""
    known = {key.removeprefix(PREFIX): value for key, value in settings if key.startswith(PREFIX)}
    chosen = {name: known[name] for name, choices in CHOICES.items() if known.get(name) in choices}
    wanted = known.get("attestations", "0")
    count = int(wanted) if wanted.isascii() and wanted.isdigit() and len(wanted) < 4 else 0
    return Policies(**chosen, attestations=min(count, MOST_ATTESTATIONS))


def read_view(local: Local, me: str) -> View:
    """The picture that the journalled rows give. `me` is this node's key."""
    policies = policies_of((row.key, row.value) for row in local.all(Setting))
    received = local.where(Received, "kind IN ('rotation', 'equivocation')")
    return View(
        me=me,
        opinions={row.subject: Opinion(verdict=row.verdict, auto_update=row.auto_update) for row in local.all(Trust)},
        changes=[_change(row) for row in received if row.kind == ROTATION],
        equivocators=frozenset(row.author for row in received if row.kind == EQUIVOCATION),
        measured=[measured(row) for row in local.where(Received, "kind = ?", (ATTESTATION,))]
        if policies.attestations
        else (),
        attested=frozenset(
            id for (id,) in local.index.read("SELECT DISTINCT adapter FROM received WHERE kind = ?", (ATTESTATION,))
        ),
        policies=policies,
    )


def _change(row: Received) -> Change:
    record = verify(row.envelope, KeyRotation).record
    return Change(
        old=author_text(record.old), new=author_text(record.new), created=record.created_ms, received=row.since
    )


def measured(row: Received) -> Measured:
    """What a received attestation says."""
    record = verify(row.envelope, Attestation).record
    return Measured(
        adapter=row.adapter, author=row.author, metric=record.metric, value=record.value, base_value=record.base_value
    )


class TrustBook:
    """The current `View`. `read` makes one from what is kept; acts that change it call `forget`."""

    def __init__(self, read: Callable[[], View]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._view: View | None = None
        self._forgotten = 0

    def view(self) -> View:
        while True:
            with self._lock:
                if self._view is not None:
                    return self._view
                asked = self._forgotten
            view = self._read()
            with self._lock:
                if asked == self._forgotten:  # else something was decided while we read
                    self._view = view

    @property
    def forgotten(self) -> int:
        """How often."""
        return self._forgotten

    def forget(self) -> None:
        """Something was decided or received: read again."""
        with self._lock:
            self._view = None
            self._forgotten += 1
