from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from orchd.errors import DatasetUnusable, ImportUnreadable, JobCancelled
from orchd.importers.conversation import Conversation, Message
from orchd.importers.source import ImportLog
from orchd.jobs.context import JobContext
from orchd.train.datasets import worker
from orchd.train.datasets.build import Parts, build
from orchd.train.datasets.specs import ImportSpec
from orchd.train.datasets.store import PARTS, ChatRow, DatasetInfo, check_content, read_info, read_part

from .conftest import Recorder, pair

EXAMPLES = Path(__file__).parents[2] / "examples"


def made(conversations: list[Conversation], folder: Path, **parts: object) -> DatasetInfo:
    return build(conversations, ImportLog(), folder, Parts(**parts), "test")  # type: ignore[arg-type]


def rows(folder: Path) -> dict[str, list[str]]:
    return {part: [row.id for row in read_part(folder, part)] for part in PARTS}


MANY = [pair(f"q{i}", f"a{i}") for i in range(50)]


def test_parts_are_disjoint_and_depend_only_on_content_and_seed(tmp_path: Path) -> None:
    first = made(MANY, tmp_path / "1")
    shuffled = random.Random(1).sample(MANY, len(MANY))
    assert made(shuffled, tmp_path / "2").id == first.id
    assert rows(tmp_path / "1") == rows(tmp_path / "2")
    assert made(MANY, tmp_path / "3", seed=1).id != first.id
    assert rows(tmp_path / "3") != rows(tmp_path / "1")
    found = rows(tmp_path / "1")
    assert (first.train, first.validation, first.test) == (40, 5, 5)
    assert sorted(one for part in found.values() for one in part) == sorted(one.id for one in MANY)
    assert read_info(tmp_path / "1") == first


@pytest.mark.parametrize(("split", "want"), [("train", (50, 0, 0)), ("test", (0, 0, 50)), ("auto", (40, 5, 5))])
def test_splits(tmp_path: Path, split: str, want: tuple[int, int, int]) -> None:
    info = made(MANY, tmp_path / "d", split=split)
    assert (info.train, info.validation, info.test) == want
    assert not list((tmp_path / "d").glob("*.tmp"))


def test_the_name_is_not_part_of_the_identity(tmp_path: Path) -> None:
    ids = {build(MANY, ImportLog(), tmp_path / name, Parts(), name).id for name in ("a", "b")}
    assert len(ids) == 1
    assert ids.pop().startswith("dst_")


@pytest.mark.parametrize("part", PARTS)
def test_rows_that_are_not_those_of_the_id_any_more(tmp_path: Path, part: str) -> None:
    info = made(MANY, tmp_path / "d")
    folder = (tmp_path / "d").rename(tmp_path / info.id)
    check_content(folder)
    lines = (folder / f"{part}.jsonl").read_text()
    (folder / f"{part}.jsonl").write_text(lines.replace('"content":"q', '"content":"Q', 1))
    with pytest.raises(DatasetUnusable, match="'test' was changed in its folder"):
        check_content(folder)
    (folder / f"{part}.jsonl").unlink()
    with pytest.raises(DatasetUnusable, match=f"{part}.jsonl") as gone:
        check_content(folder)
    assert "orchctl train resume" in gone.value.hint


def test_a_folder_of_somebodys_own_may_change(tmp_path: Path) -> None:
    made(MANY, tmp_path / "d")
    (tmp_path / "d" / "train.jsonl").write_text("")
    check_content(tmp_path / "d")


def test_of_two_copies_the_newer_stays_and_of_equal_contents_one(tmp_path: Path) -> None:
    def copy(answer: str, updated: int, nodes: int = 2) -> Conversation:
        said = (Message("user", "q"), Message("assistant", answer))
        return Conversation(id="x", messages=said, updated_ms=updated, nodes=nodes)

    info = made(
        [copy("old", 1), copy("new", 2), copy("older", 0), copy("newest", 2, 3), pair("q", "newest", "y")],
        tmp_path / "d",
        split="train",
    )
    assert (info.rows, info.duplicates) == (1, 4)
    assert [row.messages[1].content for row in read_part(tmp_path / "d", "train")] == ["newest"]


def test_without_an_answer_to_learn_there_is_no_row(tmp_path: Path) -> None:
    log = ImportLog()
    useless = [
        Conversation(id="1", messages=(Message("user", "q"),)),
        Conversation(id="2", messages=(Message("assistant", "a"), Message("user", "q"))),
        Conversation(id="3", messages=(Message("user", "q"), Message("assistant", "a", counts=False))),
    ]
    assert build([*useless, pair("q", "a")], log, tmp_path / "d", Parts(), "t").rows == 1
    assert log.skipped == 3
    with pytest.raises(DatasetUnusable, match="no conversation with an answer in it: no answer to learn") as told:
        made(useless, tmp_path / "e")
    assert told.value.hint.startswith("Add an answer")
    with pytest.raises(DatasetUnusable, match="leave something"):
        made(MANY, tmp_path / "f", test_share=0.6, validation_share=0.4)


def test_a_message_that_does_not_count_stays_so(tmp_path: Path) -> None:
    said = (Message("user", "q"), Message("assistant", "draft", counts=False), Message("assistant", "a"))
    made([Conversation(id="1", messages=said)], tmp_path / "d", split="train")
    (row,) = read_part(tmp_path / "d", "train")
    assert isinstance(row, ChatRow)
    assert row.messages == said


def test_damaged_folders_are_told(tmp_path: Path) -> None:
    made(MANY, tmp_path / "d")
    with pytest.raises(DatasetUnusable, match="no such part: exam"):
        list(read_part(tmp_path / "d", "exam"))
    (tmp_path / "d" / "train.jsonl").write_text("{}\n")
    with pytest.raises(DatasetUnusable, match=r"train\.jsonl"):
        list(read_part(tmp_path / "d", "train"))
    with pytest.raises(DatasetUnusable, match=r"dataset\.json"):
        read_info(tmp_path)


def test_the_job_imports_an_export(job: JobContext, wire: Recorder) -> None:
    result = worker.run(ImportSpec(source=str(EXAMPLES / "conversations.json"), name="half A"), job)
    info = result.info
    assert (info.format, info.kind, info.rows) == ("chatgpt", "qa", 376)
    assert (info.train, info.validation, info.test) == (300, 38, 38)
    assert info == read_info(job.workdir / result.folder)
    assert list(dict.fromkeys(sent["unit"] for sent in wire.sent if "unit" in sent)) == ["bytes", "rows"]
    assert 0 < wire.sent[-1]["done"] <= wire.sent[-1]["total"]


def test_the_job_can_be_cancelled_and_refuses(job: JobContext, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text("[]")
    with pytest.raises(ImportUnreadable):
        worker.run(ImportSpec(source=str(tmp_path / "in.json"), name="x"), job)
    job.cancel()
    with pytest.raises(JobCancelled):
        worker.run(ImportSpec(source=str(EXAMPLES / "half-b.jsonl"), name="x"), job)


def test_what_is_counted_is_said(job: JobContext, tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    lines = [json.dumps(good), "{bad", json.dumps(good), json.dumps({"messages": [good["messages"][0]]})]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    result = worker.run(ImportSpec(source=str(tmp_path / "in.jsonl"), name="x", split="train"), job)
    assert (result.info.rows, result.info.skipped, result.info.duplicates) == (1, 2, 1)
    assert [line.partition(":")[0] for line in result.warnings] == ["line 2, record 2", "line 4, record 4"]
