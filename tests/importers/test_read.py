from __future__ import annotations

import errno
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from orchd.errors import ImportTooLarge, ImportUnreadable
from orchd.importers import source as reading
from orchd.importers.conversation import Conversation
from orchd.importers.read import Reading, read_examples
from orchd.importers.source import ImportLog

EXAMPLES = Path(__file__).parents[2] / "examples"
PAIR = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}

CHATGPT = {"author": {"role": "user"}, "content": {"content_type": "text", "parts": ["q"]}}


def read(path: Path, format: str = "auto") -> tuple[list[Conversation], ImportLog]:
    log = ImportLog()
    found = list(read_examples(path, log, Reading(format=format)))
    assert all(isinstance(one, Conversation) for one in found)
    return [one for one in found if isinstance(one, Conversation)], log


def write(folder: Path, value: Any, name: str = "in.json") -> Path:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"mapping": {"a": {"message": CHATGPT}}}, "chatgpt"),
        ({"chat_messages": [{"sender": "human", "text": "q"}]}, "claude"),
        (PAIR, "openai"),
        ({"conversations": [{"from": "human", "value": "q"}]}, "sharegpt"),
        ({"instruction": "q", "output": "a"}, "alpaca"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("wrap", ["alone", "array", "wrapper", "by id"])
def test_the_kind_is_seen_by_shape(tmp_path: Path, record: dict[str, Any], kind: str, wrap: str) -> None:
    wrapped = {"alone": record, "array": [record], "wrapper": {"conversations": [record]}, "by id": {"x": record}}
    found, log = read(write(tmp_path, wrapped[wrap]))
    assert [one.messages[0].content for one in found] == ["q"]
    assert log.format == kind


def test_what_cannot_be_read_is_counted_and_said(tmp_path: Path) -> None:
    text = "\n".join([json.dumps(PAIR), "{bad", json.dumps({"messages": []}), json.dumps({"odd": 1}), json.dumps(PAIR)])
    found, log = read(write(tmp_path, text, "in.jsonl"))
    assert len(found) == 2
    assert (log.records, log.skipped) == (5, 3)
    assert [warning.partition(":")[0] for warning in log.warnings] == [f"line {n}, record {n}" for n in (2, 3, 4)]


@pytest.mark.parametrize("content", ["", "[]", "<html>", "[1, 2]", '{"odd": 1}'])
def test_a_file_with_nothing_known_in_it_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ImportUnreadable, match=r"in\.json: nothing to import"):
        read(write(tmp_path, content))


def test_a_missing_file_a_folder_and_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ImportUnreadable, match="No such file"):
        read(tmp_path / "gone")
    with pytest.raises(ImportUnreadable, match="no files"):
        read(tmp_path)
    with pytest.raises(ImportUnreadable, match="no such format: pdf"):
        read(write(tmp_path, PAIR), "pdf")


def test_a_kind_that_is_given_decides(tmp_path: Path) -> None:
    both = PAIR | {"instruction": "i", "output": "o"}
    assert read(write(tmp_path, both), "alpaca")[0][0].messages[0].content == "i"


def test_a_kind_that_the_file_is_not_is_told(tmp_path: Path) -> None:
    with pytest.raises(ImportUnreadable, match=r"in\.json is openai, not claude") as told:
        read(write(tmp_path, PAIR), "claude")
    assert told.value.hint == "Leave `--format` out, or give `--format openai`."
    mixed = write(tmp_path, "\n".join(map(json.dumps, (PAIR, {"chat_messages": [{"sender": "human", "text": "q"}]}))))
    found, log = read(mixed, "claude")
    assert (len(found), log.format, log.warnings) == (1, "claude", ["line 1, record 1: openai, not claude"])


def test_a_program_is_no_json(tmp_path: Path) -> None:
    (path := tmp_path / "ls").write_bytes(b"\x7fELF\x02\x01{\xff\x00}" * 50)
    with pytest.raises(ImportUnreadable, match=r"^ls: nothing to import, this is binary, no text$"):
        read(path)


def test_a_file_without_rights_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, PAIR)
    monkeypatch.setattr(Path, "open", _denied)
    with pytest.raises(ImportUnreadable, match="Permission denied") as told:
        read(path)
    assert told.value.hint == "Check who may read it: the daemon opens it itself."


def _denied(path: Path, *_: object) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def archive(folder: Path, **members: str) -> Path:
    path = folder / "export.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, text in members.items():
            made.writestr(name.replace("__", "/"), text)
    return path


def test_zip_with_shards_in_a_folder(tmp_path: Path) -> None:
    other = json.loads(json.dumps(PAIR).replace('"q"', '"r"'))
    path = archive(tmp_path, **{
        "x__conversations-001.json": json.dumps([other]),
        "x__conversations-000.json": json.dumps([PAIR]),
        "..__..__conversations-002.json": json.dumps([PAIR]),
        "user.json": json.dumps([PAIR]),
    })  # fmt: skip
    found, log = read(path)
    assert [one.messages[0].content for one in found] == ["q", "q", "r"]
    assert log.bytes_read == log.bytes_total
    assert list(tmp_path.iterdir()) == [path]


def test_zips_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportUnreadable, match="holds other zip files"):
        read(archive(tmp_path, **{"part-1.zip": "x"}))
    with pytest.raises(ImportUnreadable, match=r"no conversations\.json"):
        read(archive(tmp_path, **{"chat.html": "x"}))
    bomb = archive(tmp_path, **{"conversations.json": "[" + " " * (20 << 20) + "]"})
    with pytest.raises(ImportTooLarge, match="unpacks to"):
        read(bomb)
    monkeypatch.setattr(reading, "MAX_BYTES", 10)
    with pytest.raises(ImportTooLarge, match="the limit is 10"):
        read(write(tmp_path, PAIR))


def test_a_damaged_zip_says_so(tmp_path: Path) -> None:
    path = archive(tmp_path, **{"conversations.json": json.dumps([PAIR] * 50)})
    data = bytearray(path.read_bytes())
    data[60:70] = b"\xff" * 10
    path.write_bytes(data)
    with pytest.raises(ImportUnreadable, match=r"export\.zip"):
        read(path)


def test_the_examples() -> None:
    for name, kind, rows in (("conversations.json", "chatgpt", 376), ("half-b.jsonl", "openai", 376)):
        found, log = read(EXAMPLES / name)
        assert (len(found), log.format, log.skipped) == (rows, kind, 0)
        assert all(one.trainable and len(one.messages) == 2 for one in found)


def test_halves_of_an_emoji_as_bytes_are_joined_and_cost_no_other_letter(tmp_path: Path) -> None:
    """CESU-8, as Java and old MySQL write it: each half as three bytes. A lone one becomes U+FFFD, and is told."""
    row = '{"question": "São João 😀", "answer": "à direita"}'.encode()
    whole = row.replace("😀".encode(), b"\xed\xa0\xbd\xed\xb8\x80")
    path = tmp_path / "in.jsonl"
    path.write_bytes(whole + b"\n" + whole.replace(b"\xed\xb8\x80", b"") + b"\n")
    found, log = read(path)
    assert [one.messages[0].content for one in found] == ["São João 😀", "São João \ufffd"]
    assert log.warnings == ["line 2, record 2: characters that could not be read became U+FFFD"]


def test_a_number_is_a_text_too(tmp_path: Path) -> None:
    """Labels are 0 and 1 in many files; what is no number and no text is still nothing."""
    rows = [{"question": "legs of a cat", "answer": 4, "group": 7}, {"question": "is it", "answer": True}]
    rows += [{"messages": [{"role": "user", "content": "positive?"}, {"role": "assistant", "content": 0}]}]
    found, log = read(write(tmp_path, "\n".join(map(json.dumps, rows)), "in.jsonl"))
    assert [one.messages[-1].content for one in found if one.trainable] == ["4", "0"]
    assert found[0].group == "7"
    assert not log.warned
