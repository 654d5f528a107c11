"""Files and folders of text and code, and files that are neither."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from orchd.errors import ImportUnreadable
from orchd.importers.conversation import Passage
from orchd.importers.encoding import as_text, encoding_of
from orchd.importers.read import Reading, read_examples
from orchd.importers.source import ImportLog
from orchd.importers.texts import MAX_PASSAGE_CHARACTERS, PASSAGES_PER_GROUP


def read(path: Path, **how: Any) -> tuple[list[Passage], ImportLog]:
    log = ImportLog()
    found = list(read_examples(path, log, Reading(**how)))
    return [one for one in found if isinstance(one, Passage)], log


def tree(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_folder_of_notes(tmp_path: Path) -> None:
    root = tree(tmp_path, **{
        "b.md": "# Two\nlast", "a.md": "first", "sub__c.txt": "third", ".hidden.md": "no", ".git__x.md": "no",
        "node_modules__y.md": "no", "picture.png": "no", "tool.py": "no",
    })  # fmt: skip
    os.symlink("/etc/hostname", tmp_path / "link.txt")
    found, log = read(root)
    assert [(one.title, one.text) for one in found] == [
        ("a.md", "first"), ("b.md: Two", "# Two\nlast"), ("sub/c.txt", "third")]  # fmt: skip
    assert (log.format, log.kind, log.skipped) == ("text", "text", 0)
    assert log.bytes_read == log.bytes_total
    assert [one.text for one in read(root, kind="code")[0]] == ["no"]


def test_a_folder_of_code_and_one_of_exports(tmp_path: Path) -> None:
    code = tree(tmp_path / "code", **{"a.py": "x = 1\n", "b.py": "    y = 2", "README.md": "words"})
    found, log = read(code)
    assert [(one.code, one.text) for one in found] == [(True, "x = 1"), (True, "    y = 2")]
    assert log.kind == "code"
    pair = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    both = tree(tmp_path / "both", **{"x__conversations-000.json": pair, "more.jsonl": pair, "README.md": "words"})
    assert len(list(read_examples(both, ImportLog()))) == 2
    with pytest.raises(ImportUnreadable, match="1 files, none of them"):
        read(tree(tmp_path / "odd", **{"x.bin": "?"}))


def test_long_texts_are_cut_where_paragraphs_end(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {number}. " + "word " * 100 for number in range(40)]
    (path := tmp_path / "book.md").write_text("\n\n".join(paragraphs))
    found, _ = read(path)
    assert all(0 < len(one.text) <= MAX_PASSAGE_CHARACTERS for one in found)
    assert [part for one in found for part in map(str.strip, one.text.split("\n\n"))] == [
        part.strip() for part in paragraphs
    ]
    sizes = [len([one for one in found if one.group == group]) for group in dict.fromkeys(one.group for one in found)]
    assert len(sizes) > 1
    assert sizes[:-1] == [PASSAGES_PER_GROUP] * (len(sizes) - 1)
    (path := tmp_path / "one-line.txt").write_text("x" * 10_000)
    assert [len(one.text) for one in read(path)[0]] == [2000] * 5


def test_code_is_cut_between_definitions_and_keeps_its_indentation(tmp_path: Path) -> None:
    function = "def f{}():\n" + "    return 1  # one of many lines\n" * 20 + "\n\n"
    (path := tmp_path / "long.py").write_text("".join(function.format(number) for number in range(9)))
    found, _ = read(path)
    assert len(found) > 2
    assert all(one.text.startswith("def f") for one in found)


@pytest.mark.parametrize(
    ("data", "want"),
    [
        ("Olá você".encode(), "utf-8"),
        ("Olá você".encode("cp1252"), "cp1252"),
        ("“Olá” você".encode("cp1252"), "cp1252"),
        ("Olá".encode("utf-16"), "utf-16"),
        ("plain text".encode("utf-16-le"), "utf-16-le"),
        ("plain text".encode("utf-16-be"), "utf-16-be"),
        ("Olá".encode("utf-8-sig"), "utf-8-sig"),
        ("日本".encode()[:-1], "utf-8"),
        (("é" * 50 + "x").encode() + b"\xff", "utf-8"),
        (b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\x03\0>\0", None),
        (bytes(range(256)), None),
        (b"", "utf-8"),
    ],
)  # fmt: skip
def test_encodings(data: bytes, want: str | None) -> None:
    assert encoding_of(data) == want


def test_a_record_in_windows_1252_and_a_damaged_one() -> None:
    assert as_text("é não".encode("cp1252")) == "é não"
    assert as_text("cut 😀".encode()[:-1]) == "cut \ufffd"


@pytest.mark.parametrize(("name", "kind"), [("a.txt", "text"), ("a.csv", "csv")])
def test_binary_under_a_text_name_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    (path := tmp_path / name).write_bytes(b"\x7fELF\0\1\2\3" * 100)
    with pytest.raises(ImportUnreadable, match=rf"{name}: nothing to import \({name}: binary, no text\)") as told:
        read(path)
    assert "saved as text first" in str(told.value.hint)


def test_text_without_an_ending_is_read_when_asked(tmp_path: Path) -> None:
    (path := tmp_path / "NOTES").write_text("words")
    with pytest.raises(ImportUnreadable, match="no records"):
        read(path)
    assert [one.text for one in read(path, format="text")[0]] == ["words"]


def test_jsonl_as_windows_writes_it(tmp_path: Path) -> None:
    record = {"text": "Olá, você"}
    for encoding in ("utf-16", "cp1252"):
        (path := tmp_path / f"{encoding}.jsonl").write_bytes(json.dumps(record, ensure_ascii=False).encode(encoding))
        assert [one.text for one in read(path)[0]] == ["Olá, você"]


def test_in_a_folder_a_problem_is_told_with_its_file(tmp_path: Path) -> None:
    good = json.dumps({"question": "q", "answer": "a"})
    root = tree(tmp_path, **{"a.jsonl": f"{good}\n{{bad", "b.jsonl": f"{{bad\n{good}"})
    log = ImportLog()
    assert len(list(read_examples(root, log))) == 2
    assert [warning.split(": ")[:2] for warning in log.warnings] == [
        ["a.jsonl", "line 2, record 2"],
        ["b.jsonl", "line 1, record 3"],
    ]
