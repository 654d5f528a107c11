"""What an adapter may do here: one pure function over everything that was decided or received about it."""

from __future__ import annotations

import msgspec

ADMITTED, QUARANTINED, REMOVED = "admitted", "quarantined", "removed"
#: The reason against everything by an author who equivocates.
EQUIVOCATES = "its author has signed two records that contradict each other"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What counts for one adapter. Texts are reasons, empty where there is none.

    `reasons` are admission's, `policy` is what the user's policies say of it; both can be released by hand.
    `contains_revoked` are revoked adapters that it was made from, each with its name where that is known, and its id.
    """

    reasons: tuple[str, ...] = ()
    policy: str = ""
    released: bool = False
    trashed: bool = False
    rot: str = ""
    revoked: str = ""
    contains_revoked: tuple[str, ...] = ()
    blocked: str = ""
    equivocated: bool = False


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """`state` is admitted, quarantined or removed."""

    state: str
    reason: str


class StandingChange(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter whose state is another now."""

    id: str
    name: str
    before: str
    after: str
    reason: str


def standing(facts: Facts) -> Standing:
    """Removed, quarantined with every reason there is, or admitted. Only admission and policies can be overruled."""
    if facts.trashed:
        return Standing(state=REMOVED, reason="removed here; `orchctl undo` brings it back")
    reasons = list(facts.reasons)
    if facts.policy:
        reasons.append(facts.policy)
    if facts.released:
        reasons = []
    if facts.revoked:
        reasons.append(facts.revoked)
    if facts.contains_revoked:
        reasons.append(f"it contains {', '.join(facts.contains_revoked)}, which its author has revoked")
    if facts.blocked:
        reasons.append(facts.blocked)
    if facts.equivocated:
        reasons.append(EQUIVOCATES)
    if facts.rot:
        reasons.append(facts.rot)
    return Standing(state=QUARANTINED if reasons else ADMITTED, reason="; ".join(reasons))
