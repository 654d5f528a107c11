"""Kinds of topics, invitations and proofs."""

from __future__ import annotations

import random

import pytest

from orchd.errors import InviteInvalid, SecretWeak, TopicInvalid
from orchd.net.policy import names
from orchd.net.policy.names import INVITE, Invite, Kind, invitation, parse_invitation, private_name, proof

SECRET, OTHER = bytes(range(32)), bytes(32)
ADDRESSES = ("/ip4/192.0.2.7/tcp/4001/p2p/12D3KooWQkHgm6FU2mDPvYg4SdRKb8iB1hXcUvJ6ZTBkFNGF7dQK",)


@pytest.mark.parametrize(
    ("name", "kind", "is_open"),
    [
        ("our-group", Kind.PUBLIC, True),
        ("base/base_abc", Kind.BASE, True),
        ("lan/flat", Kind.LAN, False),
        ("private/family/abc", Kind.PRIVATE, False),
        ("privately", Kind.PUBLIC, True),
    ],
)
def test_the_kind_is_in_the_name(name: str, kind: Kind, is_open: bool) -> None:
    assert (names.kind_of(name), names.is_open(name)) == (kind, is_open)


def test_a_private_name_depends_on_the_secret_and_does_not_hold_it() -> None:
    name = private_name("family", SECRET)
    assert name != private_name("family", OTHER)
    assert name != private_name("familie", SECRET)
    assert name.startswith("private/family/")
    assert len(name.rpartition("/")[2]) == names.TAG_SIZE
    assert names.label_of(name) == "family"
    assert names.label_of("lan/flat") == "lan/flat"
    assert SECRET.hex()[:8] not in name


@pytest.mark.parametrize("label", ["", "a/b", " a", "a\n", "x" * 61, "e\N{COMBINING ACUTE ACCENT}"])
def test_a_label_that_is_none(label: str) -> None:
    with pytest.raises(TopicInvalid):
        private_name(label, SECRET)


@pytest.mark.parametrize("name", ["Private/x", "LAN/x", "Base/x", "pRIVATE/family"])
def test_a_prefix_in_capitals_is_refused(name: str) -> None:
    """It would be a public topic."""
    with pytest.raises(TopicInvalid, match="begins almost like"):
        names.spelled(name)


@pytest.mark.parametrize(
    "name",
    [
        "our-group",
        "lan/flat",
        "base/base_" + "3f9a" * 16,
        "private/family/72ugb5xkq4mzsd7wvn3ya2rhce",
        "3f9a" * 16,
        "Llama-3-8B-Instruct-German-Legal",
        "llama-3-8b-instruct-german-legal-summaries-2026",
        "TinyLlama-1.1B-Chat-v1.0-finetunes-2026",
        "Qwen2-5-Coder-7B-Instruct-GPTQ-Int4-R16",
        "MyVeryLongCamelCaseTopicNameHere",
        "Landwirtschaftsbetriebsverwaltungsgesellschaft",
        "our-topic-1.5",
    ],
)
def test_names_as_people_give_them(name: str) -> None:
    assert names.spelled(name) == name


def test_one_form_of_a_name_for_all() -> None:
    assert names.spelled("cafe\N{COMBINING ACUTE ACCENT}") == "caf\N{LATIN SMALL LETTER E WITH ACUTE}"


def test_a_mistyped_invitation_and_any_piece_of_one_is_no_name() -> None:
    """Public topics' names are told to every peer, and this one would be the secret."""
    draws, missed = random.Random(5), 0
    for _ in range(300):
        text = invitation(Invite("family", draws.randbytes(32), ADDRESSES))
        body = text.removeprefix(INVITE)
        for wrong in (text[1:], text.upper(), text.capitalize(), text[4:], " " + text, body, body[: len(body) // 2]):
            with pytest.raises(InviteInvalid) as told:
                names.spelled(wrong)
            assert body[:16].casefold() not in f"{told.value} {told.value.hint}".casefold()
        at = draws.randrange(len(body) - 22)
        missed += not names.is_piece(body[at : at + 22])
    assert missed <= 3, f"{missed} of 300 pieces of 22 characters"


def test_open_topics_go_together_and_each_closed_one_alone() -> None:
    given = ("a", "lan/x", "base/y", "private/z/t")
    assert names.separately(given) == [("a", "base/y"), ("lan/x",), ("private/z/t",)]
    assert names.separately(("lan/x",)) == [("lan/x",)]


def test_a_proof_is_for_one_pair_and_one_direction() -> None:
    proofs = {
        proof(SECRET, b"a", b"b"),
        proof(SECRET, b"b", b"a"),
        proof(SECRET, b"a", b"c"),
        proof(OTHER, b"a", b"b"),
        proof(SECRET, b"ab", b""),
    }
    assert len(proofs) == 5
    assert proof(SECRET, b"a", b"b") in proofs


def test_an_invitation_comes_back() -> None:
    secret = random.Random(0).randbytes(32)
    invite = Invite("Familie Müller", secret, ADDRESSES)
    text = invitation(invite)
    assert parse_invitation(text) == invite
    assert parse_invitation(text).name == private_name("Familie Müller", secret)
    assert text.isascii()
    assert not set(text) & set(" \"'$&;|<>\\")


@pytest.mark.parametrize(
    "secret",
    [bytes(32), b"a phrase that somebody thought up", b"0123456789abcdef" * 2, SECRET, b"\x80\x91\x02\xf3" * 8],
    ids=["nothing", "a phrase", "hexadecimal", "counted", "repeated"],
)
def test_an_invitation_whose_secret_could_be_guessed_is_refused(secret: bytes) -> None:
    with pytest.raises(SecretWeak, match="'family'") as caught:
        parse_invitation(invitation(Invite("family", secret[:32], ADDRESSES)))
    assert caught.value.code == 4015
    assert secret.hex() not in str(caught.value)


def test_no_random_secret_is_called_weak() -> None:
    draws = random.Random(1)
    assert not any(names.is_weak(draws.randbytes(names.SECRET_SIZE)) for _ in range(5000))


@pytest.mark.parametrize("size", [0, 15, 16, 31, 33])
def test_a_secret_of_another_length_is_refused(size: int) -> None:
    invite = Invite("family", random.Random(2).randbytes(size), ADDRESSES)
    with pytest.raises(InviteInvalid):
        parse_invitation(invitation(invite))


def test_every_changed_character_is_noticed() -> None:
    text = invitation(Invite("family", SECRET, ADDRESSES))
    for at in range(len(INVITE), len(text) - 1):
        with pytest.raises(InviteInvalid):
            parse_invitation(text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :])


@pytest.mark.parametrize("text", ["", "our-group", INVITE, INVITE + "é", INVITE + "A" * 5000, INVITE + "AAAA"])
def test_what_is_no_invitation(text: str) -> None:
    with pytest.raises(InviteInvalid):
        parse_invitation(text)


def test_one_that_is_cut_off_is_noticed_and_not_repeated() -> None:
    text = invitation(Invite("family", SECRET, ADDRESSES))
    with pytest.raises(InviteInvalid) as caught:
        parse_invitation(text[:-3])
    assert text[20:40] not in caught.value.message


@pytest.mark.parametrize("body", [b"\xc0", b"\x93\xa1x\xc4\x01s\x90", b"\x92\xa1x\xa1y"])
def test_an_invitation_of_another_form(body: bytes) -> None:
    import base64

    text = INVITE + base64.urlsafe_b64encode(names._check(body) + body).decode().rstrip("=")
    with pytest.raises(InviteInvalid, match="not one that"):
        parse_invitation(text)
