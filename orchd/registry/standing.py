"""What an adapter may do here: one pure function over everything that was decided or received about it."""

from __future__ import annotations

from collections.abc import Sequence

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
    door = () if facts.released else (*facts.reasons, facts.policy)
    final = against(facts.revoked, facts.contains_revoked, facts.blocked, facts.equivocated)
    reasons = [reason for reason in (*door, *final, facts.rot) if reason]
    return Standing(state=QUARANTINED if reasons else ADMITTED, reason="; ".join(reasons))


def against(revoked: str, contains_revoked: Sequence[str], blocked: str, equivocated: bool) -> list[str]:
    """What nobody can overrule, worst first; arguments are those of `Facts`."""
    reasons = [revoked]
    if contains_revoked:
        reasons.append(f"it contains {', '.join(contains_revoked)}, which its author has revoked")
    reasons += [blocked, EQUIVOCATES if equivocated else ""]
    return [reason for reason in reasons if reason]
