"""Data sets of every kind: divided by group, scanned, exported and read again, prepared, validated, seen by a base."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchd.errors import DatasetUnusable, OutputExists, SecretsFound, SourceChanged
from orchd.importers.conversation import Completion, Conversation, Example, Message, Passage, Preference
from orchd.importers.pick import Pick
from orchd.importers.read import Reading
from orchd.importers.source import ImportLog
from orchd.jobs.context import JobContext
from orchd.train.datasets import worker
from orchd.train.datasets.build import Care, Parts, build
from orchd.train.datasets.encode import answer_of, encode_fitting, encode_row
from orchd.train.datasets.export import export
from orchd.train.datasets.language import language_of
from orchd.train.datasets.specs import ImportSpec, PrepareSpec, PreviewSpec, StatsSpec, ValidateSpec
from orchd.train.datasets.store import (
    PARTS,
    ChatRow,
    DatasetInfo,
    Row,
    TextRow,
    digest_of_content,
    identity,
    read_info,
    read_part,
    texts_of_row,
)
from orchd.train.datasets.view import run_preview, run_stats

from .conftest import DEMO_BASE, new_job, pair

KEY = "sk-abcdefghijklmnopqrstuvwxyz012345"
Q = Message("user", "q")


def rows(folder: Path, part: str) -> list[Row]:
    return list(read_part(folder, part))


def texts(folder: Path) -> dict[str, list[tuple[str, ...]]]:
    return {part: [tuple(text for _, text in texts_of_row(row)) for row in rows(folder, part)] for part in PARTS}


def made(examples: Sequence[Example], folder: Path, care: Care = Care(), kind: str = "", **parts: Any) -> DatasetInfo:  # noqa: B008
    """Its id is that of the rows that lie there."""
    info = build(examples, ImportLog(kind=kind), folder, Parts(**parts), "test", care)
    assert info.id == identity({part: [digest_of_content(row) for row in rows(folder, part)] for part in PARTS})
    return info


# ---- split and near duplicates -------------------------------------------------------------------------------


def words(rng: random.Random, count: int) -> str:
    return " ".join(f"w{rng.randrange(900)}" for _ in range(count))


def test_what_belongs_together_is_never_divided(tmp_path: Path) -> None:
    passages = [
        Passage(id=f"{document}.{number}", text=f"text {document} {number}", group=f"d{document}")
        for document in range(20)
        for number in range(5)
    ]
    random.Random(1).shuffle(passages)
    info = made(passages, tmp_path / "d", kind="text")
    assert (info.groups, info.kind, info.rows) == (20, "text", 100)
    assert (info.test, info.validation) == (10, 10)
    of = {part: {row.group for row in rows(tmp_path / "d", part)} for part in PARTS}
    assert not of["train"] & of["test"]
    assert not of["train"] & of["validation"]
    assert not of["test"] & of["validation"]


def test_related_rows_go_to_one_part_and_near_duplicates_out(tmp_path: Path) -> None:
    rng = random.Random(2)
    said = [words(rng, 200) for _ in range(40)]
    again = [" ".join([*one.split()[:-40], *words(rng, 40).split()]) for one in said]
    nearly = [one + " end" for one in said[:10]]
    examples = [pair("tell me", text, f"{name}{number}") for name, texts in (("a", said), ("b", again), ("c", nearly))
                for number, text in enumerate(texts)]  # fmt: skip
    info = made(examples, tmp_path / "d")
    assert (info.near_duplicates, info.rows, info.groups) == (10, 80, 40)
    part_of = {row.id[1:]: set[str]() for part in PARTS for row in rows(tmp_path / "d", part)}
    for part in PARTS:
        for row in rows(tmp_path / "d", part):
            part_of[row.id[1:]].add(part)
    assert all(len(parts) == 1 for parts in part_of.values())
    assert info.test == 8
    kept = made(examples, tmp_path / "e", Care(drop_near=False))
    assert (kept.near_duplicates, kept.rows, kept.groups) == (0, 90, 40)


def test_the_same_rows_in_another_order_are_the_same_data_set(tmp_path: Path) -> None:
    rng = random.Random(3)
    texts = [words(rng, 100) for _ in range(60)]
    examples = [
        pair("q", text, str(number)) for number, text in enumerate([*texts, *(one + " end" for one in texts[:20])])
    ]
    first = made(examples, tmp_path / "1")
    assert first.near_duplicates == 20
    assert made(rng.sample(examples, len(examples)), tmp_path / "2").id == first.id


def test_an_answer_that_does_not_count_makes_another_data_set(tmp_path: Path) -> None:
    ids = set()
    for counts in (True, False):
        said = (Q, Message("assistant", "draft", counts=counts), Message("user", "r"), Message("assistant", "a"))
        ids.add(made([Conversation(id="1", messages=said)], tmp_path / str(counts)).id)
    assert len(ids) == 2


# ---- secrets -------------------------------------------------------------------------------------------------

SECRET = [pair(f"q{n}", f"a{n}") for n in range(8)] + [pair("key?", f"it is {KEY}"), pair("mail?", "joe@example.org")]


def test_where_a_key_is_found_it_is_asked(tmp_path: Path) -> None:
    with pytest.raises(SecretsFound, match=r"^a key or password in what would be learnt: key sk-a… \(35 characters\)"):
        made(SECRET, tmp_path / "d")
    assert made([one for one in SECRET if one.id != "key?"], tmp_path / "e").findings == {"mail": 1}


@pytest.mark.parametrize(
    ("care", "rows", "counts"),
    [
        (Care("keep"), 10, (0, 0, {"key": 1, "mail": 1})),
        (Care("redact"), 10, (2, 0, {})),
        (Care("drop"), 8, (0, 2, {})),
        (Care("redact", keys_only=True), 10, (1, 0, {})),
        (Care("keep", keys_only=True), 10, (0, 0, {"key": 1})),
    ],
)
def test_what_is_done_with_what_is_found(tmp_path: Path, care: Care, rows: int, counts: tuple[Any, ...]) -> None:
    info = made(SECRET, tmp_path / "d", care)
    assert (info.rows, (info.redacted, info.dropped, info.findings)) == (rows, counts)
    everything = "".join((tmp_path / "d" / f"{part}.jsonl").read_text() for part in PARTS)
    assert (KEY in everything) == (care.secrets == "keep")
    assert ("[KEY]" in everything) == (care.secrets == "redact")
    assert ("joe@example.org" in everything) == (care.secrets == "keep" or care.keys_only)
    assert KEY not in (tmp_path / "d" / "findings.jsonl").read_text()


def test_a_place_is_told_with_line_text_and_character(job: JobContext, tmp_path: Path) -> None:
    records = [{"question": "q", "answer": "a"}, {"question": "q", "answer": f"it is {KEY}", "title": "mine"}]
    (path := tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, records)))
    worker.run(ImportSpec(source=str(path), name="x", secrets="keep"), job)
    found = json.loads((job.workdir / "dataset" / "findings.jsonl").read_text())
    del found["row"]
    assert found == {
        "kind": "key", "title": "mine", "file": "in.jsonl", "line": 2, "text": 1, "who": "assistant", "start": 6,
        "end": 41, "shown": "sk-a… (35 characters)",
    }  # fmt: skip


# ---- export and back -----------------------------------------------------------------------------------------

KINDS: dict[str, list[Example]] = {
    "qa": [pair(f"q{n}", f"a{n}") for n in range(30)],
    "chat": [
        Conversation(id=str(n), title=f"t{n}", messages=(
            Message("system", "s"), Message("user", f"q{n}"), Message("assistant", "draft", counts=n % 2 == 0),
            Message("tool", "42"), Message("assistant", f"a{n}")))
        for n in range(30)
    ],
    "text": [Passage(id=str(n), text=f"text {n}\n\nmore", title=f"{n}.md", group=f"g{n // 3}") for n in range(30)],
    "code": [Passage(id=str(n), text=f"    x = {n}", code=True) for n in range(30)],
    "completion": [Completion(id=str(n), prompt=f"q{n}: ", completion=f" a{n}\n") for n in range(30)],
    "preference": [Preference(id=str(n), messages=(Q,), chosen=f"a{n}", rejected=f"b{n}") for n in range(30)],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["auto", "test"])
def test_what_is_exported_is_the_same_data_set_again(kind: str, split: str, tmp_path: Path) -> None:
    info = made(KINDS[kind], tmp_path / "d", kind="chat" if kind == "qa" else kind, split=split, seed=5)
    told = export(tmp_path / "d", tmp_path / "out.jsonl")
    assert (told.kind, told.rows, told.dataset) == (kind, 30, info.id)
    again = worker.run(ImportSpec(source=told.path, name="again"), new_job(tmp_path / "work")).info
    assert (again.id, again.kind) == (info.id, kind)
    assert texts(tmp_path / "work" / "dataset") == texts(tmp_path / "d")
    titles = [
        [(row.title, row.group) for row in rows(folder, "test")]
        for folder in (tmp_path / "d", tmp_path / "work/dataset")
    ]
    assert titles[0] == titles[1]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["d", "out.jsonl", "work"]


def test_an_export_replaces_nothing_unasked(tmp_path: Path) -> None:
    made(KINDS["qa"], tmp_path / "d")
    (path := tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(OutputExists):
        export(tmp_path / "d", path)
    assert path.read_text() == "mine"
    assert export(tmp_path / "d", path, replace=True).size == path.stat().st_size


def test_parts_that_a_file_names_are_left_when_another_split_is_asked(tmp_path: Path) -> None:
    named = [Passage(id=str(n), text=f"text {n}", part="test") for n in range(10)]
    assert made(named, tmp_path / "d", kind="text").test == 10
    assert made(named, tmp_path / "e", kind="text", split="train").train == 10


def test_version_1_of_a_data_set_is_read(tmp_path: Path) -> None:
    info = made(KINDS["qa"], tmp_path / "d")
    old = {"id": info.id, "name": "x", "kind": "chatgpt", "split": "auto", "seed": 0, "rows": 30, "train": 24,
           "validation": 3, "test": 3, "skipped": 0, "duplicates": 0, "version": 1}  # fmt: skip
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(old))
    read = read_info(tmp_path / "d")
    assert (read.kind, read.format) == ("chat", "chatgpt")
    assert all(isinstance(row, ChatRow) for row in rows(tmp_path / "d", "train"))


# ---- prepare -------------------------------------------------------------------------------------------------


def prepared(tmp_path: Path, kind: str = "qa", **spec: Any) -> tuple[DatasetInfo, Path]:
    folder = tmp_path / "d"
    if not folder.exists():
        made(KINDS[kind], folder, kind="chat" if kind == "qa" else kind)
    job = new_job(tmp_path / f"work{len(list(tmp_path.iterdir()))}")
    done = worker.run_prepare(PrepareSpec(dataset=str(folder), name="p", made_from="dst_x", **spec), job)
    return done.info, job.workdir / "dataset"


def test_preparing_keeps_rows_in_their_parts(tmp_path: Path) -> None:
    info, folder = prepared(tmp_path)
    assert texts(folder) == texts(tmp_path / "d")
    assert (info.id, info.made_from) == (read_info(tmp_path / "d").id, "dst_x")


def test_a_cap_draws_by_the_seed_and_shuffles(tmp_path: Path) -> None:
    info, folder = prepared(tmp_path, cap=5, seed=1)
    assert (info.train, info.validation, info.test, info.not_picked) == (5, 3, 3, 19)
    whole = texts(tmp_path / "d")["train"]
    drawn = texts(folder)["train"]
    assert set(drawn) < set(whole)
    assert prepared(tmp_path, cap=5, seed=1)[0].id == info.id
    assert prepared(tmp_path, cap=5, seed=2)[0].id != info.id
    assert drawn != [one for one in whole if one in drawn], "not in the old order"


def test_shuffling_keeps_all_rows_in_their_parts(tmp_path: Path) -> None:
    _, folder = prepared(tmp_path, shuffle=True, seed=4)
    whole, shuffled = texts(tmp_path / "d"), texts(folder)
    assert {part: sorted(one) for part, one in whole.items()} == {part: sorted(one) for part, one in shuffled.items()}
    assert whole["train"] != shuffled["train"]


@pytest.mark.parametrize(
    ("spec", "kept"),
    [({"search": "Q7"}, 1), ({"min_characters": 6}, 20), ({"max_characters": 5}, 10)],
)
def test_filters(tmp_path: Path, spec: dict[str, Any], kept: int) -> None:
    info, _ = prepared(tmp_path, **spec)
    assert info.rows + info.not_picked == 30
    assert info.rows == kept


def test_preparing_takes_out_near_duplicates_that_an_import_kept(tmp_path: Path) -> None:
    said = [words(random.Random(number), 100) for number in range(20)]
    both = [pair("q", text, str(number)) for number, text in enumerate([*said, *(one + " end" for one in said)])]
    assert made(both, tmp_path / "d", Care(drop_near=False)).rows == 40
    assert prepared(tmp_path, near_duplicates="keep")[0].rows == 40
    info, _ = prepared(tmp_path)
    assert (info.rows, info.near_duplicates) == (20, 20)


def test_nothing_left_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetUnusable, match="none of 30 fits"):
        prepared(tmp_path, languages=("pt",))


def test_reseeding_divides_anew_by_group(tmp_path: Path) -> None:
    info, folder = prepared(tmp_path, "text", reseed=True, seed=9)
    assert info.rows == 30
    assert texts(folder)["test"] != texts(tmp_path / "d")["test"]
    assert not {row.group for row in rows(folder, "train")} & {row.group for row in rows(folder, "test")}


# ---- validate, and what changes under one's hands ------------------------------------------------------------


def test_validating_tells_all_and_keeps_nothing(job: JobContext, tmp_path: Path) -> None:
    good = {"question": "q", "answer": f"my key is {KEY}"}
    lines = [json.dumps(good), "{bad", json.dumps({"question": "only"}), json.dumps({"question": "q", "answer": ""})]
    (path := tmp_path / "in.jsonl").write_text("\n".join(lines))
    told = worker.run_validate(ValidateSpec(source=str(path), list=5), job)
    assert (told.valid, told.records, told.examples, told.errors) == (False, 4, 1, 3)
    assert [(one.line, one.level) for one in told.issues] == [(2, "error"), (3, "error"), (4, "error")]
    assert all(one.fix for one in told.issues)
    assert told.found == {"key": 1}
    assert told.findings[0].line == 1
    assert len(told.conversations) == 1
    assert list(job.workdir.iterdir()) == []
    path.write_text(json.dumps({"question": "q", "answer": "a"}))
    assert worker.run_validate(ValidateSpec(source=str(path)), job).valid


def test_a_file_that_changes_while_it_is_read_is_refused(
    job: JobContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path := tmp_path / "in.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}))
    read = worker.read_examples

    def reading(*args: Any) -> Any:
        yield from read(*args)
        path.write_text("more")

    monkeypatch.setattr(worker, "read_examples", reading)
    with pytest.raises(SourceChanged, match=r"in\.jsonl was changed"):
        worker.run(ImportSpec(source=str(path), name="x"), job)


def test_one_example_is_learnt_and_the_missing_test_is_told(job: JobContext, tmp_path: Path) -> None:
    (path := tmp_path / "in.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}))
    done = worker.run(ImportSpec(source=str(path), name="x"), job)
    assert (done.info.train, done.info.test) == (1, 0)
    assert done.warnings == ("nothing was put aside to score on: one row is too few",)


def test_nothing_picked_says_how_to_choose(job: JobContext, tmp_path: Path) -> None:
    (path := tmp_path / "in.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}))
    spec = ImportSpec(source=str(path), name="x", reading=Reading(pick=Pick(search="nowhere")))
    with pytest.raises(DatasetUnusable, match="none of 1 fits") as told:
        worker.run(spec, job)
    assert "--list" in str(told.value.hint)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the best way to learn this, and how long does it take?", "en"),
        ("Qual é a melhor forma de aprender isso, e quanto tempo leva para mim?", "pt"),
        ("¿Cuál es la mejor forma de aprender eso y cuánto tiempo me lleva con usted?", "es"),
        ("Wie lerne ich das am besten, und was ist der beste Weg für mich?", "de"),
        ("Quelle est la meilleure façon de faire ce travail pour vous, et dans les temps ?", "fr"),
        ("Как лучше всего это выучить?", "ru"),
        ("これを学ぶ最良の方法は何ですか", "ja"),
        ("translate: zavo mirut tolbe", "?"),
        ("x = 1; y = [2, 3]", "?"),
        ("", "?"),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert language_of(text) == language


# ---- as the base sees it -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from orchd.lm.base import load_tokenizer

    return load_tokenizer(DEMO_BASE)


@pytest.mark.parametrize(
    ("kind", "learnt", "answer"),
    [
        ("qa", "a0<|im_end|>", "a0"),
        ("chat", "a0<|im_end|>", "a0"),
        ("completion", " a0\n", "a0"),
        ("preference", "a0<|im_end|>", "a0"),
        ("text", "ext 0\n\nmore", None),
        ("code", "x = 0", None),
    ],
)
def test_what_counts(tokenizer: Any, kind: str, learnt: str, answer: str | None, tmp_path: Path) -> None:
    made(KINDS[kind], tmp_path / "d", kind="chat" if kind == "qa" else kind, split="train")
    row = next(row for row in rows(tmp_path / "d", "train") if row.id in ("0", "q0"))
    encoded = encode_row(tokenizer, row)
    counted = tokenizer.decode([id for id, counts in zip(encoded.ids, encoded.counted, strict=True) if counts])
    assert learnt in counted
    assert "b0" not in tokenizer.decode(encoded.ids)
    asked = answer_of(tokenizer, row)
    assert (asked and asked[1]) == answer
    if asked:
        assert encoded.ids[: len(asked[0])] == asked[0]


def test_long_text_is_learnt_in_stretches_and_a_long_conversation_left_out(tokenizer: Any) -> None:
    row = TextRow("1", "many words and more " * 100)
    whole = encode_row(tokenizer, row)
    parts = encode_fitting(tokenizer, row, 100)
    assert all(len(part.ids) <= 100 for part in parts)
    assert sum(part.counted_tokens for part in parts) == whole.counted_tokens
    assert [id for part in parts for id, counts in zip(part.ids, part.counted, strict=True) if counts] == list(
        whole.ids[1:]
    )
    assert encode_fitting(tokenizer, ChatRow("1", (Q, Message("assistant", "long " * 200))), 100) == []
    assert len(encode_fitting(tokenizer, row, 0)) == 1


def test_the_preview_is_what_training_sees(tokenizer: Any, job: JobContext, tmp_path: Path) -> None:
    made([*KINDS["chat"], pair("long", "word " * 900, "long")], tmp_path / "d", split="train")
    shown = run_preview(PreviewSpec(base=str(DEMO_BASE), dataset=str(tmp_path / "d"), limit=31), job)
    assert shown.context == 512
    assert len(shown.rows) == 31
    for row, seen in zip(rows(tmp_path / "d", "train"), shown.rows, strict=True):
        encoded = encode_row(tokenizer, row)
        assert (seen.tokens, seen.counted) == (len(encoded.ids), encoded.counted_tokens)
        assert "".join(piece.text for piece in seen.pieces) == tokenizer.decode(encoded.ids)
        assert seen.stretches == (row.id != "long")
    draft = next(row for row in shown.rows if row.id == "1")
    assert any(piece.counts and "a1" in piece.text for piece in draft.pieces)
    assert any(not piece.counts and "draft" in piece.text for piece in draft.pieces)


def test_statistics(tokenizer: Any, job: JobContext, tmp_path: Path) -> None:
    examples = [*KINDS["qa"], pair("the way of it is how?", "a0"), pair("long", "word " * 900)]
    made(examples, tmp_path / "d")
    found = run_stats(StatsSpec(base=str(DEMO_BASE), dataset=str(tmp_path / "d")), job)
    lengths = sorted(len(encode_row(tokenizer, row).ids) for part in PARTS for row in rows(tmp_path / "d", part))
    assert found.rows == len(lengths) == 32
    assert found.tokens == sum(lengths)
    assert found.percentiles["p100"] == lengths[-1]
    assert found.percentiles["p50"] == lengths[16]
    assert {cut.length: cut.rows for cut in found.cut}[512] == 1
    assert sum(bar.rows for bar in found.histogram) == 32
    assert all(low.high + 1 == high.low for low, high in zip(found.histogram, found.histogram[1:], strict=False))
    assert found.repeated_answers == 1
    assert found.languages["en"] == 1
