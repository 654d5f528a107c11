"""Does a query find what it says, in its order, page by page, and nothing else?"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchd.errors import AdapterUnknown, AmbiguousId, BaseUnknown, NotAverageable, OrchdError, ParamsInvalid
from orchd.identity import Identity
from orchd.records import Announcement, BaseRef, Manifest, Metric, sign, text_id
from orchd.records.ids import BASE
from orchd.registry.local import put
from orchd.registry.local_rows import Trust
from orchd.registry.search import MAX_TERMS, SORTS, Query, Threshold, search
from orchd.registry.versions import named, split
from tests.helpers import ALICE, BOB, MALLORY, NOW_MS, Lab


class Shelf:
    """Adapters with one tiny set of files; each is made a second after the one before."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.folder = lab.folder()
        self.honest = lab.claim(self.folder)
        self.ids: dict[str, str] = {}

    def add(self, name: str, by: Identity = ALICE, *, quarantine: str = "", **changes: Any) -> str:
        self.lab.now_ms += 1_000
        claim = self._claim(name, by, changes)
        checks = [lambda _: quarantine] if quarantine else []
        self.ids[name] = self.lab.admit_signed(sign(claim, by), self.folder, checks=checks).id
        return self.ids[name]

    def _claim(self, name: str, by: Identity, changes: dict[str, Any]) -> Manifest:
        plain: dict[str, Any] = {
            "name": name,
            "description": "",
            "tags": (),
            "evaluation": (),
            "author": by.public_key,
            "created_ms": self.lab.now_ms,
        }
        return msgspec.structs.replace(self.honest, **(plain | changes))

    def announce(self, name: str, topic: str) -> None:
        manifest = self.lab.registry.manifest(self.ids[name])
        record = Announcement(
            manifest=manifest.digest,
            topics=(topic,),
            size=manifest.record.size,
            created_ms=NOW_MS,
            base=manifest.record.base.fingerprint,
            author=ALICE.public_key,
            seq=len(self.ids),
        )
        self.lab.registry.record_announcement(sign(record, ALICE), "peer")

    def judge(self, author: Identity, verdict: str) -> None:
        row = Trust(subject=author.author, kind="author", verdict=verdict, note="", auto_update=False, since=0)
        self.lab.registry.local.act("trust", put(row))
        self.lab.registry.people.forget()
        self.lab.registry.restand()

    def find(self, **query: Any) -> list[str]:
        return [row.name for row in search(self.lab.registry, Query(**query)).adapters]


@pytest.fixture
def shelf(lab: Lab) -> Shelf:
    return Shelf(lab)


def loss(nats: float, metric: str = "loss") -> Metric:
    return Metric(metric=metric, value=round(nats * 1e6), base_value=None, examples=9, split="test")


# ---- each filter --------------------------------------------------------------------------------------------


def test_all_words_are_wanted_in_name_tags_description_or_hint(shelf: Shelf) -> None:
    shelf.add("north-half", description="Knows GRÖSSE and snow", tags=("translate",))
    shelf.add("south-half", description="Knows sand")
    assert shelf.find(text="half") == ["south-half", "north-half"]
    assert shelf.find(text="HALF größe") == []
    for text in ("half snow", "grösse", "TRANSL knows", "tiny north"):
        assert shelf.find(text=text) == ["north-half"], text


def test_what_is_called_so_stands_first(shelf: Shelf) -> None:
    shelf.add("snow")
    shelf.add("ice", description="like snow")
    assert shelf.find(text="snow") == ["snow", "ice"]
    assert shelf.find(text="snow", sort="newest") == ["ice", "snow"]
    assert shelf.find(text="snow", reverse=True) == ["ice", "snow"]


@pytest.mark.parametrize("text", ["%", "_", "' OR 1=1 --", "\\", "*", "“"])
def test_signs_mean_themselves(shelf: Shelf, text: str) -> None:
    shelf.add("plain")
    assert shelf.find(text=text) == []
    shelf.add("odd", description=f"with {text} in it")
    assert shelf.find(text=text) == ["odd"]


def test_too_many_words_are_refused(shelf: Shelf) -> None:
    with pytest.raises(ParamsInvalid):
        shelf.find(text=" ".join(map(str, range(MAX_TERMS + 1))))


def test_base_by_name_fingerprint_or_its_beginning(shelf: Shelf) -> None:
    other = BaseRef(fingerprint=b"\x07" * 32, hint="tiny", architecture="LlamaForCausalLM")
    shelf.add("ours")
    shelf.add("theirs", base=other)
    fingerprint = shelf.lab.base.fingerprint
    for base in ("tiny", fingerprint, fingerprint[:12]):
        assert shelf.find(base=base) == ["ours"]
    with pytest.raises(BaseUnknown):
        shelf.find(base="base_")


def test_rank_licence_and_modules(shelf: Shelf) -> None:
    shelf.add("mine", licence="MIT")
    shelf.add("free", licence="CC0-1.0")
    assert shelf.find(licence="mit") == ["mine"]
    assert shelf.find(min_rank=2, max_rank=2, modules=("v_proj", "q_proj")) == ["free", "mine"]
    assert shelf.find(min_rank=3) == shelf.find(max_rank=1) == shelf.find(modules=("q_proj", "k_proj")) == []


def test_tags_and_topic(shelf: Shelf) -> None:
    shelf.add("a", tags=("x", "y"))
    shelf.add("b", tags=("x",))
    shelf.announce("a", "demo/north")
    assert shelf.find(tags=("x",)) == ["b", "a"]
    assert shelf.find(tags=("x", "y")) == ["a"]
    assert shelf.find(topic="demo/north") == ["a"]
    assert shelf.find(topic="demo") == []


def test_author_by_key_by_its_beginning_or_me(shelf: Shelf) -> None:
    shelf.add("mine")
    shelf.add("theirs", BOB)
    assert shelf.find(author="me") == shelf.find(author=ALICE.author) == ["mine"]
    assert shelf.find(author=BOB.author[:12]) == ["theirs"]
    with pytest.raises(ParamsInvalid):
        shelf.find(author="key_")


def test_trust_is_any_of_the_levels(shelf: Shelf) -> None:
    shelf.add("mine")
    shelf.add("bobs", BOB)
    shelf.add("hers", MALLORY)
    assert shelf.find(trust=("stranger",)) == ["hers", "bobs"]
    shelf.judge(BOB, "follow")
    assert shelf.find(trust=("followed",)) == ["bobs"]
    assert shelf.find(trust=("stranger",)) == ["hers"]
    assert shelf.find(trust=("self", "followed")) == ["bobs", "mine"]
    assert shelf.find(trust=("self", "stranger")) == ["hers", "mine"]
    shelf.judge(MALLORY, "block")
    assert shelf.find(trust=("blocked",)) == ["hers"]
    assert shelf.find(trust=("stranger",)) == []


def test_thresholds_go_by_the_first_value_and_want_one(shelf: Shelf) -> None:
    shelf.add("good", evaluation=(loss(0.5), loss(9), loss(0.9, "exact_match")))
    shelf.add("bad", evaluation=(loss(2.5),))
    shelf.add("silent")
    below = (Threshold(metric="loss", at_most=0.5),)
    assert shelf.find(metrics=below) == ["good"]
    assert shelf.find(metrics=(Threshold(metric="loss", at_least=0.6),)) == ["bad"]
    assert shelf.find(metrics=(Threshold(metric="loss"),)) == ["bad", "good"]
    assert shelf.find(metrics=(*below, Threshold(metric="exact_match", at_least=0.95))) == []


def test_states(shelf: Shelf) -> None:
    shelf.add("fine")
    shelf.add("odd", quarantine="its norms are odd")
    shelf.lab.registry.remove(shelf.add("gone"))
    assert shelf.find() == ["odd", "fine"]
    assert shelf.find(state="admitted") == ["fine"]
    assert shelf.find(state="quarantined") == ["odd"]
    assert shelf.find(state="removed") == ["gone"]


def test_compatible_is_what_can_be_averaged_with_it(shelf: Shelf) -> None:
    other = BaseRef(fingerprint=b"\x07" * 32, hint="tiny", architecture="LlamaForCausalLM")
    shelf.add("this")
    shelf.add("mate", BOB)
    shelf.add("elsewhere", base=other)
    only_served = shelf.add("full")
    shelf.lab.registry.index.execute(
        "UPDATE adapter SET capabilities = ['servable_as_lora'], shown = replace(shown, '\"averageable\",', '')"
        " WHERE digest = ?",
        (only_served,),
    )
    assert shelf.find(compatible_with="this") == ["mate"]
    assert shelf.find(compatible_with="this", base="tiny") == ["mate"]
    assert shelf.find(compatible_with="elsewhere", base="tiny") == []
    with pytest.raises(NotAverageable):
        shelf.find(compatible_with="full")
    with pytest.raises(AdapterUnknown):
        shelf.find(compatible_with="nobody")


def test_linked_bases_are_one(shelf: Shelf) -> None:
    other = BaseRef(fingerprint=b"\x07" * 32, hint="tiny", architecture="LlamaForCausalLM")
    shelf.add("this")
    shelf.add("file's", base=other)
    file = text_id(BASE, other.fingerprint)
    shelf.lab.registry.known_bases.link("tiny", file)
    assert shelf.find(base="tiny") == shelf.find(base=file) == ["file's", "this"]
    assert shelf.find(compatible_with="this") == ["file's"]
    assert shelf.find(compatible_with="file's", base="tiny") == ["this"]


def test_filters_are_joined(shelf: Shelf) -> None:
    shelf.add("a", tags=("x",), licence="MIT")
    shelf.add("b", tags=("x",))
    shelf.add("c", licence="MIT")
    assert shelf.find(tags=("x",), licence="MIT", author="me", trust=("self",), text="a", base="tiny") == ["a"]


# ---- order and pages ----------------------------------------------------------------------------------------


def test_each_order_and_its_reverse(shelf: Shelf) -> None:
    shelf.add("b", evaluation=(loss(0.1), loss(0.2, "exact_match")))
    shelf.add("a", evaluation=(loss(0.3), loss(0.9, "exact_match")))
    shelf.add("c")
    for sort, wanted in {"best": "cab", "newest": "cab", "received": "cab", "name": "abc"}.items():
        assert "".join(shelf.find(sort=sort)) == wanted, sort
        assert "".join(shelf.find(sort=sort, reverse=True)) == wanted[::-1], sort
    for sort, wanted, reverse in (("loss", "bac", "abc"), ("exact_match", "abc", "bac")):
        assert "".join(shelf.find(sort=sort)) == wanted
        assert "".join(shelf.find(sort=sort, reverse=True)) == reverse, "without a figure it comes last either way"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sort", ["best", *SORTS])
def test_pages_give_everything_once(shelf: Shelf, sort: Any, reverse: bool) -> None:
    for number in range(7):
        shelf.lab.now_ms = NOW_MS
        figures = (loss(number % 3),) if number % 2 else ()
        shelf.add(
            f"same-{number // 4}", seeded := BOB if number % 3 else ALICE, description=str(number), evaluation=figures
        )
        assert seeded
    query = Query(text="same", sort=sort, reverse=reverse, limit=3)
    whole = search(shelf.lab.registry, msgspec.structs.replace(query, limit=50))
    assert whole.next is None
    pages, cursor = [], None
    for _ in range(3):
        page = search(shelf.lab.registry, msgspec.structs.replace(query, cursor=cursor))
        pages.append(page.adapters)
        cursor = page.next
    assert [len(page) for page in pages] == [3, 3, 1]
    assert cursor is None
    assert [row.id for page in pages for row in page] == [row.id for row in whole.adapters]


def test_a_full_last_page_says_that_it_is_the_last(shelf: Shelf) -> None:
    for name in "abcd":
        shelf.add(name)
    first = search(shelf.lab.registry, Query(limit=2))
    second = search(shelf.lab.registry, Query(limit=2, cursor=first.next))
    assert [row.name for row in second.adapters] == ["b", "a"]
    assert second.next is None


def test_what_came_meanwhile_moves_no_page(shelf: Shelf) -> None:
    for name in "abcd":
        shelf.add(name)
    first = search(shelf.lab.registry, Query(limit=2))
    shelf.add("e")
    assert shelf.find(limit=2, cursor=first.next) == ["b", "a"]


def test_a_cursor_belongs_to_its_query(shelf: Shelf) -> None:
    for name in "abc":
        shelf.add(name)
    cursor = search(shelf.lab.registry, Query(limit=1)).next
    assert shelf.find(limit=2, cursor=cursor) == ["b", "a"]
    for other in ({"sort": "name"}, {"reverse": True}, {"text": "a"}, {"state": "admitted"}):
        with pytest.raises(ParamsInvalid, match="another query"):
            shelf.find(cursor=cursor, **other)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: msgspec.json.encode(raw).decode().strip('"')))
def test_any_other_cursor_is_refused(shelf: Shelf, text: str) -> None:
    with pytest.raises(ParamsInvalid):
        shelf.find(cursor=text)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.from_type(Query), st.integers(1, 500))
def test_any_query_is_answered_or_refused_by_number(shelf: Shelf, query: Query, limit: int) -> None:
    if not shelf.ids:
        shelf.add("a")
    try:
        search(shelf.lab.registry, msgspec.structs.replace(query, limit=limit))
    except OrchdError as error:
        assert error.code  # noqa: PT017


# ---- NAME@author --------------------------------------------------------------------------------------------


def test_name_at_author_is_the_newest_admitted_version(shelf: Shelf) -> None:
    registry = shelf.lab.registry
    first = shelf.add("north", BOB)
    mine = shelf.add("north")
    digest = registry.manifest(first).digest
    second = shelf.add("north-2", BOB, supersedes=digest, created_ms=NOW_MS - 10)
    shelf.add("north-3", BOB, supersedes=registry.manifest(second).digest, quarantine="odd")
    forged = shelf.add("north", MALLORY, supersedes=digest)
    for author in (BOB.author, BOB.author[:12]):
        assert registry.resolve(f"north@{author}") == second
    assert registry.resolve("north@me") == mine
    assert registry.resolve(f"north@{MALLORY.author}") == forged
    registry.remove(second)
    assert registry.resolve(f"north@{BOB.author}") == first
    for text in (f"south@{BOB.author}", "north@key_zzzzzzzz"):
        with pytest.raises(AdapterUnknown):
            registry.resolve(text)
    with pytest.raises(ParamsInvalid):
        registry.resolve("north@key_")


def test_a_name_that_looks_like_name_at_author_is_never_taken_as_a_name(shelf: Shelf) -> None:
    shelf.add(f"north@{BOB.author}", MALLORY)
    with pytest.raises(AdapterUnknown):
        shelf.lab.registry.resolve(f"north@{BOB.author}")
    assert shelf.lab.registry.resolve(shelf.ids[f"north@{BOB.author}"])


def test_a_beginning_that_fits_two_people_is_ambiguous(shelf: Shelf) -> None:
    shelf.add("north", BOB)
    shelf.add("north", MALLORY)
    registry = shelf.lab.registry
    start = "key_"
    with pytest.raises(ParamsInvalid):
        named(registry.index, registry.people.view(), "north", start)
    registry.index.execute("UPDATE adapter SET author = 'key_aaaa1' WHERE author = ?", (BOB.author,))
    registry.index.execute("UPDATE adapter SET author = 'key_aaaa2' WHERE author = ?", (MALLORY.author,))
    with pytest.raises(AmbiguousId):
        named(registry.index, registry.people.view(), "north", "key_aaaa")


def test_what_is_split() -> None:
    assert split("a@b@me") == ("a@b", "me")
    assert split("north@key_abc") == ("north", "key_abc")
    assert split("north") is split("north@home") is None
