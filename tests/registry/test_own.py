"""Does this node remember what it alone knows?"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from orchd.errors import AmbiguousId, DatasetUnknown, DeploymentUnknown
from orchd.registry import DatasetRow
from orchd.registry.local_rows import Deployment, Run
from orchd.registry.own import Datasets, Deployments, Topics
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
    return Datasets(lab.registry.local, lab.root / "datasets")


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


def test_the_same_content_again_changes_nothing_but_the_name(lab: Lab, datasets: Datasets) -> None:
    datasets.add(ROW, _imported(lab))
    again = datasets.add(msgspec.structs.replace(ROW, name="north again", created_ms=NOW_MS + 1), _imported(lab))
    assert again == msgspec.structs.replace(ROW, name="north again")
    assert datasets.list() == [again]
    assert not (lab.root / "work").exists()


def test_two_of_a_name_are_ambiguous_and_the_newest_comes_first(lab: Lab, datasets: Datasets) -> None:
    datasets.add(ROW, _imported(lab))
    newer = _row("b", created_ms=NOW_MS + 1)
    datasets.add(newer, _imported(lab))
    assert datasets.list() == [newer, ROW]
    with pytest.raises(AmbiguousId):
        datasets.get("north")


def test_removed_means_its_rows_are_gone_from_disk(lab: Lab, datasets: Datasets) -> None:
    datasets.add(ROW, _imported(lab))
    datasets.remove(ROW.id)
    assert datasets.list() == []
    assert list((lab.root / "datasets").iterdir()) == []


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
    with_files.mkdir()
    (with_files / "left.jsonl").write_text("left")
    datasets.add(ROW, _imported(lab, "whole"))
    assert [path.name for path in with_files.iterdir()] == ["train.jsonl"]
