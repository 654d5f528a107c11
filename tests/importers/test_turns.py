"""Whose turns are learnt."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchd.errors import ImportUnreadable
from orchd.importers.conversation import Conversation, Message, Passage
from orchd.importers.read import Reading, read_examples
from orchd.importers.source import ImportLog
from orchd.importers.turns import OPENER, turned


def said(*messages: tuple[str, str], title: str = "") -> list[tuple[str, str]]:
    given = tuple(Message(role, text) for role, text in messages)  # type: ignore[arg-type]
    found = turned(Conversation(id="1", title=title, messages=given), "user")
    assert isinstance(found, Conversation)
    return [(one.role, one.content) for one in found.messages]


def test_the_users_words_become_the_answers_and_the_first_of_them_answers_the_title() -> None:
    found = said(("user", "hi"), ("assistant", "hello"), ("user", "how?"), ("assistant", "so"), title="Greeting")
    assert found == [("user", "Greeting"), ("assistant", "hi"), ("user", "hello"), ("assistant", "how?")]
    assert said(("user", "hi"))[0] == ("user", OPENER)
    assert said(("assistant", "hello"), ("user", "hi")) == [("user", "hello"), ("assistant", "hi")]


def test_sides_alternate_without_instructions_to_the_assistant_and_tools() -> None:
    found = said(
        ("system", "be kind"),
        ("user", "a"),
        ("user", "b"),
        ("assistant", "c"),
        ("tool", "42"),
        ("assistant", "d"),
        ("user", "e"),
        title="t",
    )
    assert found == [("user", "t"), ("assistant", "a\n\nb"), ("user", "c\n\nd"), ("assistant", "e")]


def test_who_wrote_nothing_teaches_nothing() -> None:
    found = turned(Conversation(id="1", messages=(Message("assistant", "hello"),)), "user")
    assert not found.trainable


def test_context_only_stays_context_only() -> None:
    given = (Message("user", "a", counts=False), Message("assistant", "b", counts=False), Message("user", "c"))
    found = turned(Conversation(id="1", messages=given), "user")
    assert isinstance(found, Conversation)
    assert [one.counts for one in found.messages] == [True, False, True, True]


def test_text_has_no_turns(tmp_path: Path) -> None:
    with pytest.raises(ImportUnreadable, match="only conversations") as caught:
        turned(Passage(id="1", text="x"), "user")
    assert caught.value.field == "learn"
    (tmp_path / "a.txt").write_text("some text\n")
    with pytest.raises(ImportUnreadable, match="only conversations"):
        list(read_examples(tmp_path / "a.txt", ImportLog(), Reading(learn="user")))
