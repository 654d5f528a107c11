"""What is wrong with a parameter, in words that name it and what would do."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest

from orchd.errors import AddressInvalid, ParamsInvalid, TopicInvalid
from orchd.net.host import ban_subject, parse_peer_address, parse_peer_id
from orchd.net.policy.names import private_name
from orchd.rpc.methods_adapters import AdapterList
from orchd.rpc.methods_network import BanWhom, net_ban
from orchd.rpc.table import METHODS, Params, decode_params, method


class Bounded(Params, frozen=True, kw_only=True):
    least: Annotated[int, msgspec.Meta(ge=1)] = 1
    word: Annotated[str, msgspec.Meta(max_length=4)] = ""


@pytest.mark.parametrize(
    ("raw", "told"),
    [(b'{"least": 0}', "least has to be at least 1"), (b'{"word": "longer"}', "word has to be at most 4 long")],
)
def test_bounds_are_told_in_words(raw: bytes, told: str) -> None:
    table = dict(METHODS)
    method("test.bounded", Bounded, Bounded, "Nothing.", table)(_nothing)
    with pytest.raises(ParamsInvalid) as refused:
        decode_params(table["test.bounded"], msgspec.Raw(raw))
    assert refused.value.message == f"test.bounded: {told}"
    assert refused.value.field == told.split()[0]


async def _nothing(node: object, p: Bounded) -> Bounded:
    return p


def test_a_list_that_is_too_long() -> None:
    assert METHODS["adapter.list"].params is AdapterList
    with pytest.raises(ParamsInvalid, match="limit has to be at most 500"):
        decode_params(METHODS["adapter.list"], msgspec.Raw(b'{"limit": 501}'))


@pytest.mark.parametrize("text", ["/ip4/300.1.1.1/tcp/1", "nonsense", "/ip4/\x1b[31m1"])
def test_a_bad_address_stands_once_in_its_message(text: str) -> None:
    with pytest.raises(AddressInvalid) as refused:
        parse_peer_address(text)
    assert refused.value.message.count(text[1:].partition("/")[0]) <= 2
    assert refused.value.message.count("nonsense") <= 2, "the text, and the word that is unknown"
    assert "MultiAddr" not in refused.value.message
    assert refused.value.message.isprintable()


def test_hints_are_about_what_was_given() -> None:
    with pytest.raises(AddressInvalid) as refused:
        parse_peer_id("foo")
    assert "/ip4/" not in refused.value.hint
    for text in ("300.1.1.1", "127.0.0.0/8", "2001:db8::zz"):
        with pytest.raises(AddressInvalid, match="is no IP address"):
            ban_subject(text)
    for label in ("x" * 61, "a/b"):
        with pytest.raises(TopicInvalid) as named:
            private_name(label, bytes(32))
        assert "1 to 60" in named.value.hint
        assert "120" not in named.value.hint


async def test_a_reason_is_printable() -> None:
    with pytest.raises(ParamsInvalid, match="printable"):
        await net_ban(None, BanWhom(subject="192.0.2.1", reason="a\x1b]0;t\x07\nline"))  # type: ignore[arg-type]
