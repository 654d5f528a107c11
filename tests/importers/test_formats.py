from __future__ import annotations

from typing import Any

import pytest

from orchd.importers import chatgpt, claude, flat
from orchd.importers.conversation import Conversation, Message


def said(conversation: Conversation | None) -> list[tuple[str, str]]:
    assert conversation is not None
    return [(message.role, message.content) for message in conversation.messages]


def node(parent: str | None, role: str = "user", text: Any = "", **message: Any) -> dict[str, Any]:
    """One node of a ChatGPT export; a text that is no string is taken as the whole content."""
    content = {"content_type": "text", "parts": [text]} if isinstance(text, str) else text
    return {"parent": parent, "message": {"author": {"role": role}, "content": content, **message}}


ROOT = {"parent": None, "message": None}
ASKED = [("user", "hello"), ("assistant", "hi")]


def chat(current: Any = "b", **nodes: Any) -> dict[str, Any]:
    mapping = {"root": ROOT, "a": node("root", text="hello"), "b": node("a", "assistant", "hi")}
    return {"id": "c1", "mapping": mapping | nodes, "current_node": current}


@pytest.mark.parametrize(
    ("record", "want"),
    [
        (chat(), ASKED),
        (chat(current=None), ASKED),
        (chat(current="gone"), ASKED),
        (chat(current="x", x=node("a", "assistant", "again")), [("user", "hello"), ("assistant", "again")]),
        (chat(current="b", x=node("a", "assistant", "again", create_time=9)), ASKED),
        (chat(current=None, x=node("a", "assistant", "later", create_time=9)), [ASKED[0], ("assistant", "later")]),
        (chat(a=node("b", text="hello")), ASKED),
        (chat(a=node("s", text="hello"), s=node("root", "system", "be kind")), ASKED),
        (chat(b={"parent": "a", "message": None}, x=node("b", "assistant", "hi"), current="x"), ASKED),
        (chat(b=node("a", "assistant", {"content_type": "thoughts", "thoughts": []})), ASKED[:1]),
        (chat(b=node("a", "assistant", "search()", recipient="browser")), ASKED[:1]),
        (chat(a=node("root", text="me", metadata={"is_visually_hidden_from_conversation": True})), ASKED[1:]),
        (
            chat(a=node("root", text={"content_type": "multimodal_text", "parts": [
                {"content_type": "image_asset_pointer", "asset_pointer": "sediment://file_1"},
                {"content_type": "audio_transcription", "text": "hel"}, "lo\0", None]})),
            [("user", "hel\nlo"), ("assistant", "hi")],
        ),
        (chat(a=node("root", text={"content_type": "user_editable_context", "user_profile": "secret"})), ASKED[1:]),
        (chat(a="no object", b=node("a", "assistant", "hi")), ASKED[1:]),
        (chat(current=["?"], a=node(None, text="hello"), root={"children": ["a"]}), ASKED),
    ],
    ids=[
        "straight", "no current node", "dangling current node", "second branch shown", "first branch shown",
        "newest leaf", "cycle", "system node in the middle", "empty node in the middle", "thoughts", "tool call",
        "hidden", "image, speech and text", "profile is no message", "node is no object", "children fill parents",
    ],
)  # fmt: skip
def test_chatgpt(record: dict[str, Any], want: list[tuple[str, str]]) -> None:
    assert said(chatgpt.parse(record)) == want


def test_chatgpt_weights_times_and_ids() -> None:
    conversation = chatgpt.parse(chat(b=node("a", "assistant", "hi", weight=0)) | {"update_time": 12.5})
    assert conversation is not None
    assert not conversation.messages[1].counts
    assert not conversation.trainable
    assert (conversation.id, conversation.updated_ms, conversation.nodes) == ("c1", 12_500, 3)
    nameless = [chatgpt.parse({**chat(), "id": None}) for _ in range(2)]
    assert nameless[0] == nameless[1]
    assert chatgpt.parse(chat() | {"is_do_not_remember": True}) is None


def test_a_thread_of_60000_messages() -> None:
    nodes = {f"n{i}": node(f"n{i - 1}" if i else None, text=str(i)) for i in range(60_000)}
    conversation = chatgpt.parse({"mapping": nodes, "current_node": "n59999"})
    assert conversation is not None
    assert len(conversation.messages) == 60_000


def test_emoji_cut_or_split_by_escapes() -> None:
    assert said(chatgpt.parse(chat(a=node("root", text="\ud83d\ude00 \ud83d"))))[0] == ("user", "😀 \ufffd")


def claude_message(identity: str, sender: str, text: str, **fields: Any) -> dict[str, Any]:
    return {"uuid": identity, "sender": sender, "text": text, **fields}


def test_claude() -> None:
    record = {
        "uuid": "u1",
        "name": "A title",
        "updated_at": "1970-01-01T00:00:02Z",
        "chat_messages": [
            claude_message("1", "human", "read", attachments=[{"extracted_content": "the file"}]),
            claude_message("2", "assistant", "", content=[
                {"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "done"}]),
            "junk",
            claude_message("3", "someone", "else"),
        ],
    }  # fmt: skip
    conversation = claude.parse(record)
    assert said(conversation) == [("user", "read\n\nthe file"), ("assistant", "done")]
    assert (conversation.id, conversation.title, conversation.updated_ms) == ("u1", "A title", 2000)


def test_claude_takes_the_newest_branch() -> None:
    messages = [
        claude_message("1", "human", "q", parent_message_uuid="00000000-0000-4000-8000-000000000000"),
        claude_message("2", "assistant", "old", parent_message_uuid="1"),
        claude_message("3", "assistant", "new", parent_message_uuid="1"),
    ]
    assert said(claude.parse({"chat_messages": messages})) == [("user", "q"), ("assistant", "new")]
    messages[0]["parent_message_uuid"] = "3"  # a cycle ends
    assert said(claude.parse({"chat_messages": messages})) == [("user", "q"), ("assistant", "new")]


def test_openai() -> None:
    conversation = flat.parse_openai(
        {
            "messages": [
                {"role": "developer", "content": "be kind"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]},
                {"role": "assistant", "content": None, "tool_calls": [{}]},
                {"role": "assistant", "content": "draft", "weight": 0},
                {"role": "assistant", "content": "final", "weight": 1},
                {"role": 5, "content": "?"},
            ]
        }
    )
    assert conversation.messages == (
        Message("system", "be kind"),
        Message("user", "a"),
        Message("assistant", "draft", counts=False),
        Message("assistant", "final"),
    )


def test_sharegpt_and_alpaca() -> None:
    turns = [("human", "q"), ("function_call", "{}"), ("gpt", "a")]
    shared = {"system": "s", "conversations": [{"from": who, "value": text} for who, text in turns]}
    assert said(flat.parse_sharegpt(shared)) == [("system", "s"), ("user", "q"), ("assistant", "a")]
    alpaca = {"instruction": "do", "input": "this", "output": "done", "history": [["q", "a"], "junk"]}
    assert said(flat.parse_alpaca(alpaca)) == [
        ("user", "q"), ("assistant", "a"), ("user", "do\n\nthis"), ("assistant", "done")]  # fmt: skip


def test_equal_contents_have_equal_ids() -> None:
    record = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    other = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert flat.parse_sharegpt(record).id == flat.parse_openai(other).id
