"""Why nothing came of a file: what is said fits the mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchd.errors import ImportUnreadable
from orchd.importers.read import Reading, read_examples
from orchd.importers.source import ImportLog


@pytest.mark.parametrize(
    ("name", "content", "reading", "said", "hint"),
    [
        ("faq.csv", b"Frage,Antwort\na,b\n", Reading(columns={"question": "Fraage", "answer": "Antwort"}),
         "no column 'Fraage'; there is Frage, Antwort", "that are there"),
        ("faq.csv", b"Frage,Antwort\na,b\n", Reading(kind="preference"),
         "no known shape; there is Frage, Antwort", "chosen=NAME,rejected=NAME"),
        ("a.json", b"", Reading(), "nothing to import, it is empty", "something in it"),
        ("a.jsonl", b"neither this\nnor that\n", Reading(), "this is not JSON", "--format text"),
        ("a.jsonl", b"\x00\x01\xff\xfe\x00\x80" * 50, Reading(), "this is binary", "saved as text"),
        ("half.jsonl", b'{"a":1}\n{"question":\n', Reading(), "line 2", "question=NAME"),
    ],
)  # fmt: skip
def test_what_is_said_fits_the_mistake(
    name: str, content: bytes, reading: Reading, said: str, hint: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImportUnreadable) as refused:
        list(read_examples(tmp_path / name, ImportLog(), reading))
    assert said in refused.value.message
    assert hint in str(refused.value.hint)


def test_an_empty_folder_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(ImportUnreadable) as refused:
        list(read_examples(tmp_path, ImportLog()))
    assert "no file in this folder" in str(refused.value.hint)
