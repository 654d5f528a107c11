"""What decisions about authors and peers have in common: about whom, whose standing changes, which deployments fall."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from orchd.errors import AdapterUnknown, AmbiguousId, SubjectInvalid
from orchd.identity import KEY_PREFIX
from orchd.net.host import parse_peer_id
from orchd.node import Node
from orchd.records import parse_id
from orchd.records.ids import too_short
from orchd.registry import AdapterRow
from orchd.registry.standing import StandingChange
from orchd.registry.trust import AUTHOR, PEER
from orchd.registry.versions import KEY_LENGTH
from orchd.rollback import ROLLING_BACK, due
from orchd.rpc.table import Result

#: Fewer characters are too easily those of an impostor's key too. Tables show two more.
MIN_KEY = len(KEY_PREFIX) + 8
#: Adapters that an answer names; one decision can change the standing of all that are here.
MOST_NAMED = 50
_AUTHORS = """
SELECT author FROM adapter UNION SELECT author FROM announcement UNION SELECT author FROM received
UNION SELECT subject FROM trust WHERE kind = 'author'
"""


class Affected(Result, frozen=True, kw_only=True):
    """An adapter here, and how it stands now. `reason` is empty when nothing is against it."""

    id: str
    name: str
    state: str
    reason: str


class Changed(NamedTuple):
    """Those whose state is another than before: the first ones, and how many there are in all."""

    named: list[Affected]
    in_all: int


def of_changes(changes: Iterable[StandingChange]) -> Changed:
    """Those whose state is another than before."""
    found = [change for change in changes if change.before != change.after]
    named = [
        Affected(id=change.id, name=change.name, state=change.after, reason=change.reason)
        for change in found[:MOST_NAMED]
    ]
    return Changed(named, len(found))


def of_rows(rows: Iterable[AdapterRow]) -> list[Affected]:
    return [Affected(id=row.id, name=row.name, state=row.state, reason=row.reason) for row in rows]


def restand(node: Node) -> tuple[Changed, list[str]]:
    """After a decision: whose standing is another now, and the deployments that fall back to the base."""
    node.registry.people.forget()
    # Before anybody is told: then it would have begun already. What has begun fell for another reason.
    falling = [row.name for row, _ in due(node) if row.state != ROLLING_BACK]
    return of_changes(node.registry.restand()), sorted(falling)


async def tell_trust_changed(node: Node, subject: str, kind: str, verdict: str) -> None:
    """To the network, which keeps peers out or lets them in, and to whoever listens."""
    await node.network.trust_changed()
    node.events.emit("trust.changed", {"subject": subject, "kind": kind, "verdict": verdict})


def subject_of(node: Node, text: str) -> tuple[str, str]:
    """The whole key or peer id that a text means, and which of both.

    It may be the beginning of the key of an author who was heard of, or an adapter that is here, whose author is meant
    then. Raises `SubjectInvalid`, `AmbiguousId` or `AdapterUnknown`.
    """
    if text.startswith(KEY_PREFIX):
        return _whole_key(node, text), AUTHOR
    try:
        return str(parse_peer_id(text)), PEER
    except Exception:
        pass  # so it must be an adapter
    try:
        return node.registry.adapter(text).author, AUTHOR
    except AdapterUnknown as error:
        if text.startswith("adp_"):
            raise AdapterUnknown(error.message, field="subject") from None
        raise SubjectInvalid(
            f"{text[:80]!r} is no author, no peer and no adapter that is here", field="subject"
        ) from None


def heard_of(node: Node, subject: str) -> bool:
    """Whether anything by an author, or told by a peer, came here."""
    registry = node.registry
    keys = sorted(registry.people.view().keys_of(subject))
    found = registry.index.read(
        "SELECT 1 FROM adapter WHERE author IN (SELECT unnest($1::VARCHAR[]))"
        " UNION ALL SELECT 1 FROM announcement WHERE author IN (SELECT unnest($1::VARCHAR[])) OR peer = $2"
        " UNION ALL SELECT 1 FROM received WHERE author IN (SELECT unnest($1::VARCHAR[])) LIMIT 1",
        (keys, subject),
    )
    return bool(found)


def _whole_key(node: Node, text: str) -> str:
    if len(text) < KEY_LENGTH:
        if len(text) < MIN_KEY:
            raise SubjectInvalid(too_short(text, KEY_PREFIX, MIN_KEY - len(KEY_PREFIX)), field="subject")
        heard = {str(row[0]) for row in node.registry.index.read(_AUTHORS)}
        heard |= {change.new for change in node.registry.people.view().changes}
        found = sorted(key for key in heard if key.startswith(text))
        if len(found) > 1:
            raise AmbiguousId(f"{text!r} is the beginning of several keys: {', '.join(found)}", field="subject")
        if not found:
            raise SubjectInvalid(f"{text!r} is the beginning of no author's key that was heard of", field="subject")
        return found[0]
    parse_id(text, KEY_PREFIX)
    return text
