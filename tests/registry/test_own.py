"""Does this node remember what it alone knows?"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from orchd.errors import (
    AmbiguousId,
    DatasetHere,
    DatasetNameTaken,
    DatasetUnknown,
    DeploymentUnknown,
    UndoStale,
)
from orchd.registry import DatasetRow
from orchd.registry.local import put
from orchd.registry.local_rows import Dataset, Deployment, Run
from orchd.registry.own import TRASH_MS, Datasets, Deployments, Topics
from tests.helpers import NOW_MS, Lab

ROW = DatasetRow(
    id="dst_" + "a" * 52,
    name="north",
    kind="jsonl",
    train=8,
    validation=1,
    test=1,
    skipped=0,
    warnings=("one line was empty",),
    created_ms=NOW_MS,
)


def _row(letter: str, **changes: object) -> DatasetRow:
    return msgspec.structs.replace(ROW, id="dst_" + letter * 52, **changes)


@pytest.fixture
def datasets(lab: Lab) -> Datasets:
    return Datasets(lab.registry.local, lab.root / "datasets", lambda: lab.now_ms)


def _imported(lab: Lab, text: str = "hello") -> Path:
    folder = lab.root / "work"
    folder.mkdir()
    (folder / "train.jsonl").write_text(text)
    return folder


def test_a_data_set_is_found_by_id_prefix_and_name(lab: Lab, datasets: Datasets) -> None:
    assert datasets.add(ROW, _imported(lab)) == ROW
    for text in (ROW.id, ROW.id[:8], "north"):
        assert datasets.get(text) == ROW
    assert (datasets.folder(ROW.id) / "train.jsonl").read_text() == "hello"
    assert not (lab.root / "work").exists()
    for text in ("nort", "dst_", "", "south"):
        with pytest.raises(DatasetUnknown):
            datasets.get(text)


def test_a_name_that_is_nearly_right_is_told(lab: Lab, datasets: Datasets) -> None:
    datasets.add(ROW, _imported(lab))
    with pytest.raises(DatasetUnknown) as refused:
        datasets.get("nroth")
    assert refused.value.hint == "Did you mean `north`?"


def test_the_same_content_again_changes_nothing(lab: Lab, datasets: Datasets) -> None:
    datasets.add(ROW, _imported(lab))
    again = msgspec.structs.replace(ROW, name="north again", created_ms=NOW_MS + 1)
    with pytest.raises(DatasetHere, match="here already, as 'north'") as refused:
        datasets.add(again, _imported(lab))
    assert "orchctl dataset delete" in refused.value.hint
    assert datasets.add(msgspec.structs.replace(ROW, created_ms=NOW_MS + 1), lab.root / "work") == ROW
    told = datasets.add(again, _imported(lab), named=False)
    assert (told.name, told.warnings[-1]) == ("north", "these rows were here already, as 'north'")
    assert datasets.list() == [ROW]
    assert not (lab.root / "work").exists()


def test_a_name_stands_for_one_data_set(lab: Lab, datasets: Datasets) -> None:
    datasets.add(ROW, _imported(lab))
    with pytest.raises(DatasetNameTaken, match="another data set is called 'north'") as refused:
        datasets.add(_row("b"), _imported(lab))
    assert "--name" in refused.value.hint
    assert datasets.list() == [ROW]
    for letter, name, folder in (("b", "north-2", lab.root / "work"), ("c", "north-3", None)):
        free = datasets.add(_row(letter), folder or _imported(lab), named=False)
        assert free.name == name
        assert free.warnings[-1] == f"another data set is called 'north', so this one is {name!r}"


def test_two_of_a_name_from_before_are_listed_with_their_ids(lab: Lab, datasets: Datasets) -> None:
    datasets.add(ROW, _imported(lab))
    old = lab.registry.local.get(Dataset, ROW.id)
    assert old is not None
    lab.registry.local.act("old", put(msgspec.structs.replace(old, id=_row("b").id, created=NOW_MS + 1)))
    assert [row.id for row in datasets.list()] == [_row("b").id, ROW.id], "the newest comes first"
    with pytest.raises(AmbiguousId, match=f"{_row('b').id}.*{ROW.id}") as refused:
        datasets.get("north")
    assert refused.value.hint == "Say which by its id, or by more characters of it."


def test_a_deleted_one_is_had_back_for_a_while(lab: Lab, datasets: Datasets) -> None:
    datasets.add(ROW, _imported(lab))
    datasets.remove(ROW.id)
    assert datasets.list() == []
    lab.registry.undo(ROW.id)
    assert datasets.back(ROW.id) == ROW
    assert (datasets.folder(ROW.id) / "train.jsonl").read_text() == "hello"


def test_one_that_comes_back_takes_no_name_that_was_given_away(lab: Lab, datasets: Datasets) -> None:
    datasets.add(ROW, _imported(lab))
    datasets.remove(ROW.id)
    datasets.add(_row("b"), _imported(lab))
    lab.registry.undo(ROW.id)
    assert datasets.back(ROW.id).name == "north-2"
    assert datasets.get("north-2").id == ROW.id
    assert datasets.get("north").id == _row("b").id


def test_what_is_imported_again_is_out_of_the_trash(lab: Lab, datasets: Datasets) -> None:
    datasets.add(ROW, _imported(lab))
    datasets.remove(ROW.id)
    assert datasets.add(_row("a", name="other"), _imported(lab)).name == "other"
    assert datasets.purge(empty_trash=True).datasets == ()
    assert (datasets.folder(ROW.id) / "train.jsonl").exists()


def test_after_a_month_its_rows_are_gone_from_disk(lab: Lab, datasets: Datasets) -> None:
    datasets.add(ROW, _imported(lab))
    datasets.remove(ROW.id)
    lab.now_ms += TRASH_MS - 1
    assert datasets.purge().datasets == ()
    lab.now_ms += 2
    assert datasets.purge(dry_run=True).datasets == (ROW.id,)
    assert datasets.folder(ROW.id).is_dir()
    purged = datasets.purge()
    assert (purged.datasets, purged.bytes) == ((ROW.id,), len("hello"))
    assert list((lab.root / "datasets").iterdir()) == []
    with pytest.raises(UndoStale):
        lab.registry.undo(ROW.id)


def test_the_trash_of_data_sets_is_emptied_at_once_when_asked(lab: Lab, datasets: Datasets) -> None:
    datasets.add(ROW, _imported(lab))
    datasets.remove(ROW.id)
    assert datasets.purge(empty_trash=True).datasets == (ROW.id,)
    assert not datasets.folder(ROW.id).exists()


def test_which_adapters_a_data_set_went_into(lab: Lab, datasets: Datasets) -> None:
    for adapter in ("adp_b", "adp_a", "adp_b"):
        datasets.add_run(Run(adapter=adapter, dataset=ROW.id, job="job_1", salt=bytes(32)))
    assert datasets.adapters_from(ROW.id) == ["adp_a", "adp_b"]
    assert datasets.adapters_from("dst_other") == []


def test_joined_topics_stay_joined_over_a_restart(lab: Lab) -> None:
    topics = Topics(lab.registry.local, lambda: NOW_MS)
    for name in ("b", "a", "b"):
        topics.add(name)
    lab.registry.close()
    topics = Topics(lab.open().local, lambda: NOW_MS)
    assert topics.list() == ["a", "b"]
    topics.remove("a")
    topics.remove("nothing")
    assert topics.list() == ["b"]


def test_a_deployment_replaces_the_one_of_its_name(lab: Lab) -> None:
    deployments = Deployments(lab.registry.local)
    first = Deployment(
        name="words",
        adapter=None,
        target="embedded",
        state="ready",
        base="base_x",
        blob="ab" * 32,
        size=10,
        quantize="F16",
        parity=None,
        created=1,
    )
    deployments.put(first)
    second = msgspec.structs.replace(first, adapter="adp_x", parity='{"held": true}', created=2)
    deployments.put(second)
    assert deployments.list() == [second]
    assert deployments.get("words") == second
    deployments.remove("words")
    with pytest.raises(DeploymentUnknown, match="words"):
        deployments.get("words")


def test_half_a_data_set_that_a_crash_left_is_not_taken_for_the_whole(lab: Lab, datasets: Datasets) -> None:
    """The row went, then the files began to: what is imported again is the new one."""
    datasets.add(ROW, _imported(lab, "whole"))
    with_files = datasets.folder(ROW.id)
    datasets.remove(ROW.id)
    datasets.purge(empty_trash=True)
    with_files.mkdir()
    (with_files / "left.jsonl").write_text("left")
    datasets.add(ROW, _imported(lab, "whole"))
    assert [path.name for path in with_files.iterdir()] == ["train.jsonl"]
