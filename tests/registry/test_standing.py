"""What an adapter may do here, for every fact about it."""

from __future__ import annotations

import msgspec
import pytest

from orchd.registry.standing import ADMITTED, QUARANTINED, REMOVED, Facts, standing

AGAINST = {
    "reasons": ("the base is not here",),
    "policy": "its author is a stranger",
    "rot": "a file of it is damaged",
    "revoked": "its author has revoked it",
    "contains_revoked": ("adp_x",),
    "blocked": "its author is blocked",
    "equivocated": True,
}
OVERRULED = {"reasons", "policy"}


def test_nothing_against_it_means_admitted() -> None:
    assert standing(Facts()) == standing(Facts(released=True))
    assert standing(Facts()).state == ADMITTED
    assert standing(Facts()).reason == ""


@pytest.mark.parametrize("fact", AGAINST)
def test_each_fact_quarantines_and_is_told(fact: str) -> None:
    stands = standing(Facts(**{fact: AGAINST[fact]}))  # type: ignore[arg-type]
    assert stands.state == QUARANTINED
    assert stands.reason
    value = AGAINST[fact]
    told = [value] if isinstance(value, str) else value if isinstance(value, tuple) else []
    assert all(text in stands.reason for text in told)


@pytest.mark.parametrize("fact", AGAINST)
def test_only_verdicts_and_policies_are_overruled_by_hand(fact: str) -> None:
    stands = standing(Facts(released=True, **{fact: AGAINST[fact]}))  # type: ignore[arg-type]
    assert stands.state == (ADMITTED if fact in OVERRULED else QUARANTINED)


def test_what_is_removed_is_nothing_else() -> None:
    assert standing(msgspec.structs.replace(Facts(**AGAINST), trashed=True)).state == REMOVED  # type: ignore[arg-type]


def test_every_reason_is_told() -> None:
    assert standing(Facts(**AGAINST)).reason.count("; ") == len(AGAINST) - 1  # type: ignore[arg-type]
