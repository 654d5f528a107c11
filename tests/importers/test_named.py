"""Records with a name for each text, from JSONL and from tables, of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchd.errors import ImportUnreadable
from orchd.importers.conversation import Completion, Conversation, Example, Message, Passage, Preference
from orchd.importers.kinds import kind_of
from orchd.importers.read import Reading, read_examples
from orchd.importers.source import ImportLog

QA = (Message("user", "q"), Message("assistant", "a"))


def read(path: Path, **how: Any) -> tuple[list[Example], ImportLog]:
    log = ImportLog()
    return list(read_examples(path, log, Reading(**how))), log


def rows(folder: Path, *records: Any) -> Path:
    (path := folder / "in.jsonl").write_text("\n".join(json.dumps(one) for one in records))
    return path


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"question": "q", "answer": "a"}, "qa"),
        ({"Pergunta": "q", "Resposta": "a"}, "qa"),
        ({"prompt": "q", "response": "a", "system": "s"}, "qa"),
        ({"instruction": "q", "output": "a"}, "qa"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}] * 2}, "chat"),
        ({"prompt": "q", "completion": "a"}, "completion"),
        ({"text": "some words"}, "text"),
        ({"code": "x = 1"}, "code"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference"),
        ({"messages": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"}, "preference"),
    ],
)
def test_the_kind_is_seen(tmp_path: Path, record: dict[str, Any], kind: str) -> None:
    (one,), log = read(rows(tmp_path, record))
    assert kind_of(one) == kind
    assert log.kind == ("chat" if kind == "qa" else kind)
    assert one.trainable


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "a"}],
         "rejected": {"content": "b", "role": "assistant"}},
        {"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
         "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
         "rejected": {"from": "gpt", "value": "b"}},
        {"input": {"messages": [{"role": "user", "content": "q"}]},
         "preferred_output": [{"role": "assistant", "content": "a"}],
         "non_preferred_output": [{"role": "assistant", "content": "b"}]},
        {"instruction": "q", "chosen": "a", "rejected": "b"},
        {"question": "q", "chosen": "a", "rejected": "b"},
    ],
    ids=["texts", "messages", "whole conversations", "ShareGPT", "OpenAI", "instruction", "question"],
)  # fmt: skip
def test_preferences_as_they_are_written(tmp_path: Path, record: dict[str, Any]) -> None:
    (one,), _ = read(rows(tmp_path, record))
    assert isinstance(one, Preference)
    assert (one.messages, one.chosen, one.rejected) == ((Message("user", "q"),), "a", "b")


def test_single_messages_are_no_texts(tmp_path: Path) -> None:
    with pytest.raises(ImportUnreadable, match="line 1, record 1: no known shape"):
        read(rows(tmp_path, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}))


def test_a_preference_for_equal_answers_teaches_nothing(tmp_path: Path) -> None:
    (one,), _ = read(rows(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "a"}))
    assert not one.trainable


def test_blanks_between_a_prompt_and_its_completion_stay(tmp_path: Path) -> None:
    (one,), _ = read(rows(tmp_path, {"prompt": "q: ", "completion": " a\n"}))
    assert isinstance(one, Completion)
    assert (one.prompt, one.completion) == ("q: ", " a\n")


def test_a_data_set_is_of_one_kind(tmp_path: Path) -> None:
    path = rows(tmp_path, {"text": "words"}, {"question": "q", "answer": "a"}, {"text": "more"})
    found, log = read(path)
    assert [kind_of(one) for one in found] == ["text", "text"]
    (problem,) = log.problems
    assert (problem.line, problem.text) == (2, "qa, not text")
    assert problem.fix == "A data set is of one kind; import the qa records by themselves with `--kind qa`."
    found, log = read(path, kind="qa")
    assert [kind_of(one) for one in found] == ["qa"]
    assert log.skipped == 2


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("completion", Completion(id="", prompt="q", completion="a")),
        ("chat", Conversation(id="", messages=QA)),
        ("qa", Conversation(id="", messages=QA)),
    ],
)
@pytest.mark.parametrize("record", [{"question": "q", "answer": "a"}, {"prompt": "q", "completion": "a"}])
def test_a_kind_that_is_given_turns_pairs_into_it(tmp_path: Path, record: Any, kind: str, want: Example) -> None:
    (one,), _ = read(rows(tmp_path, record), kind=kind)
    assert type(one) is type(want)
    texts = ("prompt", "completion") if isinstance(one, Completion) else ("messages",)
    assert all(getattr(one, name) == getattr(want, name) for name in texts)


def test_only_single_exchanges_are_qa(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    found, log = read(rows(tmp_path, {"messages": said}, {"messages": said * 2}), kind="qa")
    assert (len(found), log.skipped) == (1, 1)


def test_text_and_code_are_what_the_user_says(tmp_path: Path) -> None:
    (one,), _ = read(rows(tmp_path, {"text": "x = 1"}), kind="code")
    assert isinstance(one, Passage)
    assert one.code


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables(tmp_path: Path, encoding: str, delimiter: str) -> None:
    cells = [("question", "answer", "note"), ("Olá, você?", '"sim,\nclaro; é"', "x"), ("", "", ""), ("q", "a", "")]
    quoted = [
        [f'"{cell.strip(chr(34))}"' if cell.strip('"') != cell or "," in cell else cell for cell in row]
        for row in cells
    ]
    (path := tmp_path / "in.csv").write_text("\n".join(delimiter.join(row) for row in quoted), encoding=encoding)
    found, log = read(path)
    assert [[m.content for m in one.messages] for one in found if isinstance(one, Conversation)] == [
        ["Olá, você?", "sim,\nclaro; é"],
        ["q", "a"],
    ]
    assert (log.format, log.kind, log.skipped) == ("csv", "chat", 0)


def test_columns_that_the_user_names(tmp_path: Path) -> None:
    (path := tmp_path / "in.csv").write_text("Frage,Notiz,Antwort\nq,x,a\n")
    with pytest.raises(ImportUnreadable, match="no known shape") as told:
        read(path)
    assert "--columns" in str(told.value.hint)
    (one,), _ = read(path, columns={"question": "Frage", "answer": "Antwort"})
    assert isinstance(one, Conversation)
    assert one.messages == QA
    with pytest.raises(ImportUnreadable, match="nothing is called 'reply'"):
        read(path, columns={"reply": "Antwort"})


def test_a_row_with_too_many_cells_is_told_by_its_line(tmp_path: Path) -> None:
    (path := tmp_path / "in.csv").write_text('question,answer\n"two\nlines",a\nq,a,b\nq,a\n')
    found, log = read(path)
    assert len(found) == 2
    assert [(one.line, one.text) for one in log.problems] == [
        (4, "3 cells under 2 names; is a quotation mark missing?")
    ]


@pytest.mark.parametrize("after", [["q8,a8"], ['q8,"a, 8"', "q9,a9"]])
def test_a_quotation_mark_that_is_not_closed_is_told_by_its_lines(tmp_path: Path, after: list[str]) -> None:
    """It would make one cell of all that follows, up to the next mark or to the end of the file."""
    lines = ["question,answer", "q1,a1", 'q2,"a2', *(f"q{n},a{n}" for n in range(3, 8)), *after]
    (path := tmp_path / "in.csv").write_text("\n".join(lines) + "\n")
    found, log = read(path)
    assert [one.messages[0].content for one in found if isinstance(one, Conversation)] == ["q1", "q9"][: len(after)]
    assert [(one.line, one.text) for one in log.problems] == [
        (3, "a quotation mark is not closed, and takes in all up to line 9")
    ]


def test_a_format_and_a_kind_are_not_mixed_up(tmp_path: Path) -> None:
    path = rows(tmp_path, {"text": "x"})
    with pytest.raises(ImportUnreadable, match="no such kind: chatgpt") as told:
        read(path, kind="chatgpt")
    assert told.value.hint == "chatgpt is a format: give `--format chatgpt`."
    with pytest.raises(ImportUnreadable, match="no such format: qa") as told:
        read(path, format="qa")
    assert told.value.hint == "qa is a kind: give `--kind qa`."


def test_the_part_that_an_export_names_is_kept(tmp_path: Path) -> None:
    found, _ = read(rows(tmp_path, {"text": "a", "split": "test"}, {"text": "b", "split": "odd"}, {"text": "c"}))
    assert [one.part for one in found] == ["test", "", ""]
