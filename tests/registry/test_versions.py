"""Which adapter does `NAME@author` mean?"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchd.registry.versions import Made, family, newest


def made(id: str, supersedes: str | None = None, **changes: Any) -> Made:
    fields: dict[str, Any] = {"name": "north", "created": 100, "received": 100, "admitted": True}
    return Made(id=id, supersedes=supersedes, **(fields | changes))


def ids(versions: list[Made]) -> list[str]:
    return [one.id for one in versions]


def test_the_later_made_one_is_newer() -> None:
    found = family([made("a", created=1), made("c", created=3), made("b", created=2), made("x", name="x")], ["north"])
    assert ids(found) == ["c", "b", "a"]


def test_supersedes_decides_against_the_authors_clock() -> None:
    found = family([made("a", created=500), made("b", "a", created=2), made("c", "b", created=300)], ["north"])
    assert ids(found) == ["c", "b", "a"]


def test_an_adapter_made_after_a_clock_was_set_back_is_not_newer_than_its_replacement() -> None:
    found = family([made("a", created=500), made("b", "a", created=2), made("z", created=300)], ["north"])
    assert ids(found) == ["b", "a", "z"]


def test_a_version_may_have_another_name() -> None:
    all_of_them = [made("a"), made("b", "a", name="north-2"), made("c", "b", name="north-3"), made("d", name="south")]
    for asked in ({"names": ["north"]}, {"names": ["north-2"]}, {"ids": ["c"]}):
        assert set(ids(family(all_of_them, **asked))) == {"a", "b", "c"}


def test_the_newest_is_the_newest_admitted() -> None:
    found = family([made("a"), made("b", "a"), made("c", "b", admitted=False)], ["north"])
    assert ids(found) == ["c", "b", "a"]
    best = newest(found)
    assert best is not None
    assert best.id == "b"
    assert newest([made("a", admitted=False)]) is None


def test_what_was_replaced_may_be_gone() -> None:
    assert ids(family([made("b", "gone", created=1), made("a", created=2)], ["north"])) == ["a", "b"]


_pool = st.sampled_from("abcdefgh")


@given(st.lists(st.tuples(_pool, st.none() | _pool, st.integers(0, 9)), unique_by=lambda one: one[0]))
def test_any_claims_give_each_version_once(claims: list[tuple[str, str | None, int]]) -> None:
    """Rings and claims to replace oneself too, which digests rule out."""
    rows = [made(id, supersedes, created=created) for id, supersedes, created in claims]
    assert sorted(ids(family(rows, ["north"]))) == sorted(id for id, _, _ in claims)


def test_a_chain_of_ten_thousand_is_no_trouble() -> None:
    rows = [made(str(n), str(n - 1) if n else None, created=10_000 - n) for n in range(10_000)]
    assert ids(family(rows, ids=["5000"]))[0] == "9999"
