"""Who is trusted: verdicts, changed keys, policies. Pure: a `View` is made by hand."""

from __future__ import annotations

import pytest

from orchd.registry.trust import (
    ALLOW,
    BLOCK,
    FOLLOW,
    MOST_ATTESTATIONS,
    Change,
    Measured,
    Opinion,
    Policies,
    TrustBook,
    View,
    policies_of,
)

ME = "key_me"


def view(*changes: tuple[str, str], measured: tuple[Measured, ...] = (), policies: Policies | None = None,
         equivocators: tuple[str, ...] = (), **opinions: str) -> View:  # fmt: skip
    """`a="follow"` is a verdict on `key_a`; changes are pairs of keys."""
    return View(
        me=ME,
        opinions={f"key_{name}": Opinion(verdict=verdict) for name, verdict in opinions.items()},
        changes=[Change(old=f"key_{old}", new=f"key_{new}", created=at) for at, (old, new) in enumerate(changes)],
        equivocators=frozenset(f"key_{name}" for name in equivocators),
        measured=measured,
        policies=policies or Policies(),
    )


def attested(evaluator: str, value: int = 1, base: int | None = 2, metric: str = "loss") -> Measured:
    return Measured(adapter="adp_x", author=f"key_{evaluator}", metric=metric, value=value, base_value=base)


# ---- verdicts ----------------------------------------------------------------------------------------------------


def test_levels() -> None:
    seen = view(a=FOLLOW, b=ALLOW, c=BLOCK)
    levels = {name: seen.level(f"key_{name}") for name in ("me", "a", "b", "c", "d")}
    assert levels == {"me": "self", "a": "followed", "b": "allowed", "c": "blocked", "d": "stranger"}
    assert seen.blocked("key_c").startswith("its author key_c is blocked")
    assert seen.blocked("key_a") == seen.blocked("key_d") == ""


@pytest.mark.parametrize(("verdict", "level"), [(FOLLOW, "followed"), (ALLOW, "allowed"), (BLOCK, "blocked")])
def test_a_verdict_goes_with_the_person_to_the_new_key(verdict: str, level: str) -> None:
    seen = view(("old", "new"), ("new", "newer"), old=verdict)
    assert {seen.level(f"key_{name}") for name in ("old", "new", "newer")} == {level}


def test_nobody_gets_out_of_a_block_by_a_new_key_or_back_to_an_old_one() -> None:
    assert view(("old", "new"), old=BLOCK, new=FOLLOW).level("key_new") == "blocked"
    assert "another key" in view(("old", "new"), old=BLOCK).blocked("key_new")
    assert view(("old", "new"), new=BLOCK).level("key_old") == "blocked"


def test_one_s_own_old_key_is_oneself() -> None:
    assert view(("mine", "me")).level("key_mine") == "self"


def test_two_heirs_of_one_key_inherit_nothing() -> None:
    seen = view(("old", "new"), ("old", "thief"), old=FOLLOW)
    assert seen.level("key_old") == "followed"
    assert seen.level("key_new") == seen.level("key_thief") == "stranger"
    assert seen.equivocated("key_old")
    assert not seen.equivocated("key_thief")


def test_keys_in_a_circle_end() -> None:
    seen = view(("a", "b"), ("b", "c"), ("c", "a"), b=ALLOW)
    assert {seen.level(f"key_{name}") for name in "abc"} == {"allowed"}
    assert seen.newest("key_a") in {"key_a", "key_b", "key_c"}
    assert seen.followed() == frozenset()


def test_newest_and_retired() -> None:
    seen = view(("a", "b"), ("b", "c"))
    assert [seen.newest(f"key_{name}") for name in "abcd"] == ["key_c", "key_c", "key_c", "key_d"]
    assert [seen.retired(f"key_{name}") for name in "abcd"] == [0, 1, None, None]


# ---- policies ----------------------------------------------------------------------------------------------------


def test_strangers_are_quarantined_where_that_is_wished() -> None:
    seen = view(a=FOLLOW, b=ALLOW, policies=Policies(quarantine="strangers"))
    assert "stranger" in seen.policy_reason("key_d", "adp_x")
    assert {seen.policy_reason(f"key_{name}", "adp_x") for name in ("a", "b", "me")} == {""}
    assert view().policy_reason("key_d", "adp_x") == ""


def test_attestations_by_distinct_followed_authors() -> None:
    wanted = Policies(attestations=2)
    two = (attested("a"), attested("b"))
    assert view(a=FOLLOW, b=FOLLOW, measured=two, policies=wanted).policy_reason("key_d", "adp_x") == ""
    assert view(measured=two, policies=wanted).policy_reason(ME, "adp_x") == ""
    few = {
        "nobody is followed": view(measured=two, policies=wanted),
        "one only is allowed": view(a=FOLLOW, b=ALLOW, measured=two, policies=wanted),
        "one twice": view(a=FOLLOW, measured=(attested("a"), attested("a", 0)), policies=wanted),
        "one person with two keys": view(("a", "b"), a=FOLLOW, b=FOLLOW, measured=two, policies=wanted),
        "one is worse than the base": view(
            a=FOLLOW, b=FOLLOW, measured=(attested("a"), attested("b", 3)), policies=wanted
        ),
        "one gets less right than the base": view(
            a=FOLLOW, b=FOLLOW, measured=(attested("a"), attested("b", 1, 2, "exact_match")), policies=wanted
        ),
        "one lies to others": view(a=FOLLOW, b=FOLLOW, measured=two, policies=wanted, equivocators=("b",)),
    }
    for case, seen in few.items():
        assert "of 2 followed authors" in seen.policy_reason("key_d", "adp_x"), case
    own = view(a=FOLLOW, b=FOLLOW, measured=two, policies=wanted)
    assert own.policy_reason("key_a", "adp_x").startswith("1 of 2"), "an author's own word does not count"


def test_policies_are_read_with_care() -> None:
    kept = [
        ("policy.auto_fetch", "followed"),
        ("policy.quarantine", "everybody"),
        ("policy.attestations", "3"),
        ("x", "y"),
    ]
    assert policies_of(kept) == Policies(auto_fetch="followed", quarantine="off", attestations=3)
    assert policies_of([("policy.attestations", "-1")]).attestations == 0
    assert policies_of([("policy.attestations", "999")]).attestations == MOST_ATTESTATIONS


def test_the_book_reads_again_what_changed_while_it_read() -> None:
    levels = [FOLLOW, BLOCK]

    def read() -> View:
        seen = view(a=levels[0])
        if len(levels) > 1:  # somebody decides otherwise while this picture is taken
            levels.pop(0)
            book.forget()
        return seen

    book = TrustBook(read)
    assert book.view().level("key_a") == "blocked"
    assert book.view() is book.view()
