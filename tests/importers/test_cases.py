"""The 32 ways in which exports really differ, each as a whole file: what comes out of it, and what is said about it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orchd.errors import ImportUnreadable
from orchd.importers.conversation import Conversation
from orchd.importers.read import read_examples
from orchd.importers.source import ImportLog

Said = list[list[str]]
ASKED: Said = [["hello", "hi"]]


class Case(NamedTuple):
    """`want`: the texts of each conversation; an error's words where it is a string. `skipped` records are left out."""

    data: bytes
    want: Said | str
    skipped: int = 0
    name: str = "conversations.json"


def node(
    parent: str | None, role: str, content: Any, children: list[str] | None = None, **message: Any
) -> dict[str, Any]:
    """One node; a text stands for the usual content of type text."""
    whole = {"content_type": "text", "parts": [content]} if isinstance(content, str) else content
    made: dict[str, Any] = {"parent": parent, "message": {"author": {"role": role}, "content": whole, **message}}
    return made if children is None else {**made, "children": children}


HELLO = node("root", "user", "hello", ["b"], status="finished_successfully", weight=1.0)
HI = node("a", "assistant", "hi", [], status="finished_successfully", weight=1.0)


def chat(current: Any = "b", **nodes: Any) -> dict[str, Any]:
    root = {"id": "root", "parent": None, "message": None, "children": ["a"]}
    about = {"id": "c1", "title": "t", "create_time": 1.0, "update_time": 2.0}
    return {**about, "mapping": {"root": root, "a": HELLO, "b": HI} | nodes, "current_node": current}


def file(*records: Any) -> bytes:
    return json.dumps(list(records)).encode()


def lines(*records: Any) -> bytes:
    return b"\n\n".join(json.dumps(one).encode() for one in records)


def zipped(**members: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return made.getvalue()


def thread(length: int) -> dict[str, Any]:
    nodes = {f"n{i}": node(f"n{i - 1}" if i else None, ("user", "assistant")[i % 2], str(i)) for i in range(length)}
    return {"id": "deep", "mapping": nodes, "current_node": f"n{length - 1}"}


def other_types() -> dict[str, Any]:
    kinds = ("thoughts", "reasoning_recap", "code", "execution_output", "brand_new")
    odd = {
        f"x{i}": node("a" if i == 0 else f"x{i - 1}", "assistant", {"content_type": kind})
        for i, kind in enumerate(kinds)
    }
    return chat("b", **odd, b=node("x4", "assistant", "hi"))


SLIM = {key: {"parent": one["parent"], "message": one["message"]} for key, one in (("a", HELLO), ("b", HI))}
BARE = {"a": node("root", "user", "hello"), "b": node("a", "assistant", "hi")}
SHARED = {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]}
OPENAI = {"messages": [
    {"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "image_url"}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
    {"role": "assistant", "content": "draft", "weight": 0},
    {"role": "assistant", "content": "hi"}]}  # fmt: skip
CLAUDE = {"uuid": "u", "name": "n", "chat_messages": [
    {"uuid": "1", "sender": "human", "text": "hello", "attachments": [{"extracted_content": "the file"}]},
    {"uuid": "2", "sender": "assistant", "text": "", "content": [
        {"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hi"}]}]}  # fmt: skip
MIXED_PARTS = {"content_type": "multimodal_text", "parts": [
    {"content_type": "image_asset_pointer", "asset_pointer": "sediment://file_1"}, "hello",
    {"content_type": "audio_transcription", "text": "spoken"}]}  # fmt: skip
PROFILE = {"content_type": "user_editable_context", "user_profile": "secret"}
HIDDEN = {"is_visually_hidden_from_conversation": True}

CASES: dict[str, Callable[[], Case]] = {
    "branch, the second child is shown": lambda: Case(
        file(chat("x", x=node("a", "assistant", "again"), a=HELLO | {"children": ["b", "x"]})), [["hello", "again"]]),
    "no children arrays": lambda: Case(file(chat(**SLIM)), ASKED),
    "status and weight missing": lambda: Case(file(chat(**BARE)), ASKED),
    "current_node null": lambda: Case(file(chat(None)), ASKED),
    "current_node dangling": lambda: Case(file(chat("gone")), ASKED),
    "parent cycle": lambda: Case(file(chat(a=HELLO | {"parent": "b"})), ASKED),
    "null title, times and ids": lambda: Case(
        file({**chat(), "title": None, "create_time": None, "update_time": None, "id": None}), ASKED),
    "hidden system node in the middle": lambda: Case(
        file(chat(b=node("s", "assistant", "hi"), s=node("a", "system", "be kind", metadata=HIDDEN))), ASKED),
    "empty node in the middle": lambda: Case(
        file(chat(b=node("e", "assistant", "hi"), e={"parent": "a", "message": None})), ASKED),
    "image, text and speech": lambda: Case(
        file(chat(a=node("root", "user", MIXED_PARTS))), [["hello\nspoken", "hi"]]),
    "thoughts, recap, code, output and an unknown type": lambda: Case(file(other_types()), ASKED),
    "the user's profile": lambda: Case(
        file(chat(a=node("p", "user", "hello"), p=node("root", "user", PROFILE))), ASKED),
    "weight 0, and hidden": lambda: Case(
        file(chat("c", b=node("a", "assistant", "hi", weight=0), c=node("b", "user", "no", metadata=HIDDEN))), ASKED),
    "lone surrogate, NUL, NaN and a raw control character": lambda: Case(
        file(chat(a=node("root", "user", "hel\ud83d\0lo\x07", create_time=float("nan")))).replace(b"\\u0007", b"\x07"),
        [["hel\ufffdlo\x07", "hi"]]),
    "a bad record between good ones": lambda: Case(
        b"[" + json.dumps(chat()).encode() + b', {"mapping": oops}, ' + json.dumps(chat()).encode() + b"]",
        ASKED * 2, skipped=1),
    "truncated": lambda: Case(file(chat(), chat())[:-40], ASKED, skipped=1),
    "byte order mark": lambda: Case(b"\xef\xbb\xbf" + file(chat()), ASKED),
    "wrapped in an object": lambda: Case(json.dumps({"conversations": [chat()]}).encode(), ASKED),
    "an object keyed by id": lambda: Case(json.dumps({"c1": chat(), "c2": chat()}).encode(), ASKED * 2),
    "one pretty-printed object": lambda: Case(json.dumps(chat(), indent=2).encode(), ASKED),
    "60,000 messages deep": lambda: Case(file(thread(60_000)), [[str(i) for i in range(60_000)]]),
    "5,000 brackets deep": lambda: Case(
        b'[{"mapping": ' + b"[" * 5000 + b"]" * 5000 + b"}, " + file(chat())[1:], ASKED, skipped=1),
    "shards in a folder of a zip": lambda: Case(
        zipped(**{"x__user.json": file(chat()), **{f"x__conversations-00{n}.json": file(chat()) for n in (0, 1)}}),
        ASKED * 2, name="export.zip"),
    "a name in a zip that leads elsewhere": lambda: Case(
        zipped(**{"..__..__conversations.json": file(chat())}), ASKED, name="export.zip"),
    "zip of zips": lambda: Case(zipped(**{"part-1.zip": zipped(a=b"")}), "holds other zip files", name="export.zip"),
    "Claude: attached text and thinking": lambda: Case(file(CLAUDE), [["hello\n\nthe file", "hi"]]),
    "OpenAI: parts, weight, tool calls, blank lines": lambda: Case(
        lines(OPENAI, OPENAI), [["hello", "draft", "hi"]] * 2, name="train.jsonl"),
    "ShareGPT, one a line": lambda: Case(lines(SHARED, SHARED), ASKED * 2, name="train.jsonl"),
    "ShareGPT, an array": lambda: Case(file(SHARED), ASKED, name="sharegpt.json"),
    "Alpaca with history": lambda: Case(
        file({"instruction": "do", "input": "", "output": "done", "history": [["hello", "hi"]]}),
        [["hello", "hi", "do", "done"]], name="alpaca.json"),
    "HTML": lambda: Case(b"<!doctype html><html><body>hello</body></html>", "nothing to import", name="chat.html"),
    "an empty array": lambda: Case(b"[]", "nothing to import"),
}  # fmt: skip


def test_there_are_32() -> None:
    assert len(CASES) == 32


@pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
def test_a_file_as_it_comes(make: Callable[[], Case], tmp_path: Path) -> None:
    case = make()
    (path := tmp_path / case.name).write_bytes(case.data)
    log = ImportLog()
    if isinstance(case.want, str):
        with pytest.raises(ImportUnreadable, match=case.want) as told:
            list(read_examples(path, log))
        assert told.value.hint
        return
    found = [one for one in read_examples(path, log) if isinstance(one, Conversation)]
    assert [[message.content for message in one.messages] for one in found] == case.want
    assert log.skipped == case.skipped
    assert all(one.fix for one in log.problems)
    assert list(tmp_path.iterdir()) == [path], "nothing is unpacked"


def test_what_came_twice_has_one_id(tmp_path: Path) -> None:
    (path := tmp_path / "s.jsonl").write_bytes(lines(SHARED, SHARED))
    assert len({one.id for one in read_examples(path, ImportLog())}) == 1


def test_an_answer_of_weight_0_does_not_count(tmp_path: Path) -> None:
    (path := tmp_path / "s.jsonl").write_bytes(lines(OPENAI))
    (one,) = read_examples(path, ImportLog())
    assert isinstance(one, Conversation)
    assert [message.counts for message in one.messages] == [True, False, True]
