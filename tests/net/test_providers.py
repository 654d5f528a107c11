"""Who is asked for an adapter, and when: on a simulated clock, with peers that only answer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import msgspec
import pytest
import trio
import trio.testing
from libp2p.peer.id import ID

from orchd.errors import NoProvider, PeerRefused
from orchd.net.providers import AGAIN_S, LARGE, MORE, MORE_S, ROUNDS, Search, searching
from orchd.records import Manifest, Verified, sign
from tests.helpers import ALICE, manifest


def of_size(size: int) -> Verified[Manifest]:
    record = manifest()
    (first, *_) = record.files
    return sign(msgspec.structs.replace(record, files=(msgspec.structs.replace(first, size=size),)), ALICE)


SMALL, BIG = of_size(LARGE), of_size(LARGE + 1)


@dataclass
class Village:
    """Peers by name; `answers` takes each peer's time and yes. Those that are asked are noted with the time."""

    answers: dict[str, tuple[float, bool]]
    manifest: Verified[Manifest] = SMALL
    asked: list[tuple[float, str]] = field(default_factory=list)
    begun: float = field(default_factory=trio.current_time)

    def peers(self) -> Sequence[ID]:
        return [ID(name.encode()) for name in self.answers]

    async def ask(self, peer: ID) -> Verified[Manifest]:
        name = peer.to_bytes().decode()
        self.asked.append((round(trio.current_time() - self.begun, 3), name))
        seconds, has_it = self.answers[name]
        await trio.sleep(seconds)
        if not has_it:
            raise PeerRefused(f"{name} has nothing")
        return self.manifest

    def names(self) -> list[str]:
        return [name for _, name in self.asked]

    def search(self, *, everybody: bool = False) -> AbstractAsyncContextManager[Search]:
        return searching("adp_x", self.ask, self.peers, everybody=everybody)


Clock = trio.testing.MockClock


async def used(search: Search) -> str:
    """Whom the next worker gets."""
    peer = await search.next()
    return peer.to_bytes().decode() if peer else ""


async def test_one_that_has_it_is_enough(autojump_clock: Clock) -> None:
    village = Village({"author": (ROUNDS[0][1] / 2, True)} | {f"p{number}": (0.0, True) for number in range(9)})
    async with village.search() as search:
        assert await search.first() is SMALL
        assert village.names() == ["author"]
        assert await used(search) == "author"


async def test_a_silent_one_is_not_waited_for(autojump_clock: Clock) -> None:
    village = Village({"silent": (1e9, True), "a": (1e9, True), "b": (0.1, False), "c": (0.2, True), "d": (0.0, True)})
    async with village.search() as search:
        assert await search.first() is SMALL
        assert set(village.asked) == {(0.0, "silent"), *((ROUNDS[0][1], name) for name in "abcd"[: ROUNDS[1][0]])}
        assert await used(search) == "c"


async def test_where_all_are_slow_few_are_asked(autojump_clock: Clock) -> None:
    """Else each of twenty that hear of an adapter at once would ask all the others, and be slower for it."""
    village = Village({f"p{number}": (3.4, True) for number in range(40)})
    async with village.search() as search:
        await search.first()
    assert len(village.asked) == sum(count for count, _ in ROUNDS[:3])


async def test_who_says_no_is_passed_over_at_once(autojump_clock: Clock) -> None:
    village = Village({f"p{number}": (0.0, number == 7) for number in range(9)})
    async with village.search() as search:
        await search.first()
        assert trio.current_time() == village.begun
        assert len(village.asked) == 9


async def test_nobody_has_it(autojump_clock: Clock) -> None:
    village = Village({f"p{number}": (0.1, False) for number in range(6)})
    with pytest.raises(NoProvider, match="adp_x: p0 has nothing"):
        async with village.search() as search:
            await search.first()
    with pytest.raises(NoProvider, match="connected"):
        async with Village({}).search() as search:
            await search.first()


@pytest.mark.parametrize(("record", "expected"), [(SMALL, MORE), (BIG, 9)])
async def test_others_are_asked_while_it_is_fetched(
    autojump_clock: Clock, record: Verified[Manifest], expected: int
) -> None:
    """All at once for a large adapter, some now and then for a small one."""
    village = Village({f"p{number}": (0.0, True) for number in range(10)}, record)
    async with village.search() as search, trio.open_nursery() as nursery:
        await search.first()
        assert await used(search) == "p0"
        nursery.start_soon(search.go_on)
        assert await used(search) in village.names()[1:]
        assert trio.current_time() - village.begun == pytest.approx(0.0 if record is BIG else MORE_S)
        assert len(village.asked) == 1 + expected
        nursery.cancel_scope.cancel()


async def test_one_that_turns_up_joins_in(autojump_clock: Clock) -> None:
    village = Village({"author": (0.0, True)})
    async with village.search() as search, trio.open_nursery() as nursery:
        await search.first()
        nursery.start_soon(search.go_on)
        assert await used(search) == "author"
        village.answers["late"] = (0.0, True)
        assert await used(search) == "late"
        assert trio.current_time() - village.begun == pytest.approx(MORE_S)
        nursery.cancel_scope.cancel()


async def test_one_that_lacked_it_is_asked_again(autojump_clock: Clock) -> None:
    village = Village({"author": (0.0, True), "other": (0.0, False)})
    async with village.search() as search, trio.open_nursery() as nursery:
        await search.first()
        nursery.start_soon(search.go_on)
        assert await used(search) == "author"
        await trio.sleep(MORE_S + 0.1)
        village.answers["other"] = (0.0, True)
        assert await used(search) == "other"
        assert trio.current_time() - village.begun > AGAIN_S
        nursery.cancel_scope.cancel()


async def test_when_all_have_given_up_the_rest_is_asked_and_then_it_is_over(autojump_clock: Clock) -> None:
    village = Village({f"p{number}": (0.1, number in (0, 5)) for number in range(7)})
    async with village.search() as search, trio.open_nursery() as nursery:
        await search.first()
        nursery.start_soon(search.go_on)
        assert await used(search) == "p0"
        search.done(ID(b"p0"), again=True)
        assert await used(search) == "p5"
        search.done(ID(b"p5"), again=True)
        assert await used(search) == ""
        assert trio.current_time() - village.begun < 1.0


@pytest.mark.parametrize(("lied", "times"), [(True, 1), (False, 2)])
async def test_a_peer_has_a_second_chance_unless_it_lied(autojump_clock: Clock, lied: bool, times: int) -> None:
    """While another one brings something, so that the fetch goes on."""
    village = Village({"steady": (0.0, True), "bad": (0.0, True)})
    async with village.search(everybody=True) as search, trio.open_nursery() as nursery:
        await search.first()
        nursery.start_soon(search.go_on)
        assert {await used(search), await used(search)} == {"steady", "bad"}
        search.done(ID(b"bad"), again=not lied)
        with trio.move_on_after(10 * AGAIN_S):
            while name := await used(search):
                search.done(ID(name.encode()), again=True)
        assert village.names().count("bad") == times
        nursery.cancel_scope.cancel()


async def test_what_the_block_raises_comes_by_itself(autojump_clock: Clock) -> None:
    with pytest.raises(PeerRefused):
        async with Village({"silent": (1e9, True)}).search():
            raise PeerRefused("no")
