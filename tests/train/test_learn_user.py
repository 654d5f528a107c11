"""Data sets of the user's own words: imported, seen, written out and read again, prepared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchd.errors import DatasetUnusable, SecretsFound
from orchd.importers.read import Reading
from orchd.importers.turns import Learn
from orchd.train.datasets import worker
from orchd.train.datasets.export import export
from orchd.train.datasets.specs import ImportSpec, PrepareSpec, PreviewSpec
from orchd.train.datasets.store import ChatRow, DatasetInfo, read_part
from orchd.train.datasets.view import run_preview

from .conftest import DEMO_BASE, new_job


def written(tmp_path: Path, answer: str = "I see") -> Path:
    said = [
        {
            "messages": [
                {"role": "user", "content": f"my words {number}"},
                {"role": "assistant", "content": f"{answer} {number}"},
                {"role": "user", "content": f"more of mine {number}"},
                {"role": "assistant", "content": "fine"},
            ],
            "title": f"about {number}",
        }
        for number in range(12)
    ]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in said))
    return file


def imported(source: Path, tmp_path: Path, learn: Learn, secrets: str = "ask") -> tuple[DatasetInfo, Path]:
    job = new_job(tmp_path / f"work{len(list(tmp_path.iterdir()))}")
    spec = ImportSpec(source=str(source), name="m", reading=Reading(learn=learn), secrets=secrets)  # type: ignore[arg-type]
    return worker.run(spec, job).info, job.workdir / "dataset"


def test_what_is_learnt_is_what_the_user_wrote(tmp_path: Path) -> None:
    info, folder = imported(written(tmp_path), tmp_path, "user")
    assert info.learns == "user"
    assert info.id != imported(written(tmp_path), tmp_path, "assistant")[0].id
    preview = run_preview(PreviewSpec(base=str(DEMO_BASE), dataset=str(folder)), new_job(tmp_path / "seen"))
    assert preview.learns == "user"
    for row in preview.rows:
        learnt = "".join(piece.text for piece in row.pieces if piece.counts)
        read = "".join(piece.text for piece in row.pieces if not piece.counts)
        assert "my words" in learnt
        assert "more of mine" in learnt
        assert "I see" not in learnt
        assert "I see" in read
        assert "fine" not in read + learnt


def test_written_out_and_read_again_it_is_the_same_data_set(tmp_path: Path) -> None:
    info, folder = imported(written(tmp_path), tmp_path, "user")
    export(folder, tmp_path / "out.jsonl")
    assert imported(tmp_path / "out.jsonl", tmp_path, "assistant")[0].id == info.id


def test_a_key_is_told_with_who_really_wrote_it(tmp_path: Path) -> None:
    source = written(tmp_path, answer="sk-abcdefghijklmnopqrstuvwxyz012345")
    with pytest.raises(SecretsFound, match=", assistant"):
        imported(source, tmp_path, "user")


def test_prepared_from_one_that_learns_the_answers(tmp_path: Path) -> None:
    info, folder = imported(written(tmp_path), tmp_path, "assistant")

    def prepared(dataset: Path, learn: str) -> tuple[DatasetInfo, Path]:
        job = new_job(tmp_path / f"work{len(list(tmp_path.iterdir()))}")
        spec = PrepareSpec(dataset=str(dataset), name="p", made_from=info.id, learn=learn)  # type: ignore[arg-type]
        return worker.run_prepare(spec, job).info, job.workdir / "dataset"

    mine, exchanged = prepared(folder, "user")
    assert (mine.learns, mine.rows) == ("user", info.rows)
    rows = [row for row in read_part(exchanged, "train") if isinstance(row, ChatRow)]
    assert all(row.messages[1].role == "assistant" and row.messages[1].content.startswith("my") for row in rows)
    same, _ = prepared(exchanged, "")
    assert (same.learns, same.id) == ("user", mine.id)
    assert prepared(exchanged, "user")[0].id == mine.id
    with pytest.raises(DatasetUnusable, match="last words"):
        prepared(exchanged, "assistant")
