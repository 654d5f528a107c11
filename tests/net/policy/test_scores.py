"""Bans: who gets one, for how long, and what the neighbours of a liar get."""

from __future__ import annotations

from orchd.net.policy.scores import BAN_MAX_S, BAN_S, HALF_LIFE_S, MEMORY_S, SUBJECTS, Floods, Offence, Scores


def test_a_lie_is_enough_and_the_ban_ends() -> None:
    scores = Scores()
    (ban,) = scores.blame("liar", "192.0.2.1", Offence.LIED, "a bad chunk", 10.0)
    assert (ban.subject, ban.until, ban.reason) == ("liar", 10.0 + BAN_S, "a bad chunk")
    assert scores.is_banned("liar", 10.0 + BAN_S - 1)
    assert scores.bans(10.0) == [ban]
    assert not scores.is_banned("liar", 10.0 + BAN_S)
    assert scores.bans(10.0 + BAN_S) == []
    assert not scores.is_banned("192.0.2.1", 11.0)


def test_small_offences_add_up_and_are_forgotten_with_time() -> None:
    scores = Scores()
    assert scores.blame("peer", "", Offence.MALFORMED, "x", 0.0) == []
    assert scores.score("peer", HALF_LIFE_S) == Offence.MALFORMED / 2
    assert scores.blame("peer", "", Offence.MALFORMED, "x", HALF_LIFE_S) == []
    assert scores.blame("peer", "", Offence.MALFORMED, "x", HALF_LIFE_S) != []
    patient = Scores()
    for turn in range(50):
        assert patient.blame("peer", "", Offence.FLOODED, "x", turn * HALF_LIFE_S) == []


def test_each_ban_is_longer_than_the_last_until_it_is_long_ago() -> None:
    scores, now, lengths = Scores(), 0.0, []
    for _ in range(10):
        (ban,) = scores.blame("liar", "", Offence.LIED, "x", now)
        lengths.append(ban.until - now)
        now = ban.until
    assert lengths[:3] == [BAN_S, 2 * BAN_S, 4 * BAN_S]
    assert lengths[-1] == BAN_MAX_S
    (ban,) = scores.blame("liar", "", Offence.LIED, "x", now + MEMORY_S + 1)
    assert ban.until - now - MEMORY_S - 1 == BAN_S


def test_new_keys_at_one_place_are_no_new_start() -> None:
    scores = Scores()
    bans = [ban.subject for number in range(5) for ban in scores.blame(f"k{number}", "p", Offence.LIED, "x", 0.0)]
    assert bans == ["k0", "k1", "k2", "k3", "k4", "p"]
    assert scores.is_banned("p", 1.0)


def test_a_place_that_says_nothing_is_not_banned() -> None:
    scores = Scores()
    for number in range(50):
        scores.blame(f"k{number}", "", Offence.LIED, "x", 0.0)
    assert not scores.is_banned("", 0.0)


def test_what_is_done_while_banned_does_not_add_up() -> None:
    scores = Scores()
    scores.blame("liar", "", Offence.LIED, "x", 0.0)
    assert scores.blame("liar", "", Offence.LIED, "x", 1.0) == []
    assert scores.score("liar", 1.0) == 0.0


def test_forgiven_is_a_new_start() -> None:
    scores = Scores()
    scores.blame("liar", "", Offence.LIED, "x", 0.0)
    scores.forgive("liar")
    assert not scores.is_banned("liar", 0.0)
    (ban,) = scores.blame("liar", "", Offence.LIED, "x", 0.0)
    assert ban.until == BAN_S


def test_who_goes_on_after_many_refusals_floods() -> None:
    floods: Floods[str] = Floods(10.0, 100.0)
    assert not any(floods.refused("patient", second / 10) for second in range(1000))
    refusals = [floods.refused("flooder", 0.0) for _ in range(303)]
    assert [number for number, flood in enumerate(refusals) if flood] == [100, 201, 302]
    assert not floods.refused("patient", 100.0)


def test_refusals_of_many_are_counted_in_bounded_memory() -> None:
    floods: Floods[int] = Floods(10.0, 100.0)
    for peer in range(3 * SUBJECTS):
        floods.refused(peer, 0.0)
    assert len(floods._patience) == SUBJECTS


def test_a_crowd_of_small_offenders_does_not_push_out_the_banned() -> None:
    scores = Scores(subjects=100)
    scores.blame("liar", "", Offence.LIED, "x", 0.0)
    for number in range(10_000):
        scores.blame(f"k{number}", "", Offence.FLOODED, "x", 1.0)
    assert scores.is_banned("liar", 2.0)
    assert len(scores._records) <= 100
