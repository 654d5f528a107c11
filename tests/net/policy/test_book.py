"""Remembered peers and bans by hand."""

from __future__ import annotations

import random

import msgspec

from orchd.net.policy import book as policy
from orchd.net.policy.book import Banned, Book, Page, Remembered

DAY_MS = 86_400_000


def way(number: int) -> str:
    return f"/ip4/192.0.{number // 250}.{number % 250}/tcp/4001"


def test_the_address_that_worked_last_comes_first() -> None:
    book = Book()
    for number in (1, 2, 3, 4, 5, 2):
        book.reached("p", way(number), number)
    (entry,) = book.peers()
    assert entry.addresses == (way(2), way(5), way(4), way(3))


def test_it_comes_back_from_its_page() -> None:
    book = Book()
    book.reached("p", way(1), 5)
    book.told("q", (way(2), way(3)))
    book.ban(Banned(subject="r", reason="rude"))
    raw = msgspec.json.encode(book.page())
    again = Book(msgspec.json.decode(raw, type=Page))
    assert (again.peers(), again.bans(0)) == (book.peers(), book.bans(0))
    assert again.changes == 0


def test_it_is_bounded_and_keeps_those_that_answered_lately() -> None:
    book = Book()
    book.reached("old", way(9999), 1)
    book.reached("failing", way(9998), 10**6)
    book.failed("failing", 10**6)
    for number in range(policy.PEERS):
        book.reached(f"p{number}", way(number), number + 2)
    peers = {entry.peer for entry in book.peers()}
    assert len(peers) == policy.PEERS
    assert not peers & {"old", "failing"}


def test_many_keys_at_one_place_do_not_fill_it() -> None:
    book = Book()
    book.reached("honest", way(1), 1)
    for number in range(1000):
        book.reached(f"sybil{number}", "/ip4/198.51.100.1/tcp/1", number + 2)
    assert [entry.peer for entry in book.peers()][-1] == "honest"
    assert len(book.peers()) == policy.PEERS_PER_PLACE + 1


def test_what_does_not_answer_for_long_is_struck_out() -> None:
    book = Book()
    book.reached("p", way(1), 0)
    for _ in range(policy.FAILURES * 2):
        book.failed("p", DAY_MS)
    assert book.peers()[0].failures == policy.FAILURES * 2
    book.failed("p", 15 * DAY_MS)
    assert book.peers() == []
    book.failed("p", 15 * DAY_MS)


def test_one_answer_clears_the_failures() -> None:
    book = Book()
    book.reached("p", way(1), 0)
    book.failed("p", 0)
    book.reached("p", way(1), 1)
    assert book.peers()[0].failures == 0


def test_who_came_last_does_not_shut_out_the_others() -> None:
    book = Book()
    for number in range(100):
        book.reached(f"p{number}", way(number), number)
    tried = book.to_try(8, random.Random(1))
    assert [entry.peer for entry in tried[:4]] == ["p99", "p98", "p97", "p96"]
    assert len({entry.peer for entry in tried}) == 8
    assert Book().to_try(8, random.Random(1)) == []


def test_invited_addresses_are_kept_until_they_work() -> None:
    book = Book()
    book.told("p", (way(1), way(2)))
    assert book.peers() == [Remembered(peer="p", addresses=(way(1), way(2)), reached_ms=0)]
    book.reached("p", way(2), 7)
    book.told("p", (way(3),))
    assert book.peers() == [Remembered(peer="p", addresses=(way(2), way(1), way(3)), reached_ms=7)]


def test_bans_end_or_are_lifted() -> None:
    book = Book()
    book.ban(Banned(subject="a", until_ms=10))
    book.ban(Banned(subject="b"))
    assert (book.is_banned("a", 9), book.is_banned("a", 10), book.is_banned("b", 10**15)) == (True, False, True)
    assert [ban.subject for ban in book.bans(10)] == ["b"]
    assert (book.lift("b"), book.lift("b")) == (True, False)
    assert not book.is_banned("b", 0)
    for number in range(policy.BANS + 10):
        book.ban(Banned(subject=str(number)))
    assert len(book.bans(0)) == policy.BANS
