"""Does a bundle bring an adapter, its lineage and what is known of it, to a node without a network, and once only?"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from orchd.errors import AdapterRevoked, BlobUnknown, DigestMismatch, DiskFull, OrchdError, TensorsRefused
from orchd.identity import Identity
from orchd.records import (
    Attestation,
    BaseRef,
    KeyRotation,
    Manifest,
    Record,
    Revocation,
    Training,
    Verified,
    parse_id,
    sign,
)
from orchd.records.ids import ADAPTER
from orchd.registry import Admission, blobs, bundle, exchange
from orchd.registry.exchange import export, imported_before, judge_again, take_in
from orchd.registry.local_rows import Received
from orchd.registry.news import receive
from tests.helpers import ALICE, BOB, MALLORY, NOW_MS, Lab, base_tensors, lora_tensors, manifest, plain, write_base


class Home(Lab):
    """A lab that closes."""

    def close(self) -> None:
        self.registry.close()

    def made(self, name: str, seed: int = 0, signer: Identity = ALICE, initial: str | None = None) -> Admission:
        folder = self.folder(name, tensors=lora_tensors(seed))
        claim = self.claim(folder, name=name, author=signer.public_key)
        if initial is not None:
            training = Training(**(plain(manifest())["training"] | {"initial": parse_id(initial, ADAPTER)}))
            claim = msgspec.structs.replace(claim, training=training)
        return self.admit_signed(sign(claim, signer), folder)

    def told(self, *records: Verified[Any]) -> None:
        for record in records:
            assert receive(self.registry, record)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "home")
    yield home
    home.close()


@pytest.fixture
def away(tmp_path: Path) -> Iterator[Home]:
    away = Home(tmp_path / "away", author=MALLORY)
    yield away
    away.close()


def _revoked(id: str, by: Identity) -> Verified[Revocation]:
    record = Revocation(manifest=parse_id(id, ADAPTER), reason="wrong", created_ms=NOW_MS, author=by.public_key)
    return sign(record, by)


def _attested(id: str, by: Identity = BOB) -> Verified[Attestation]:
    return sign(
        Attestation(
            manifest=parse_id(id, ADAPTER),
            evaluator=by.public_key,
            metric="loss",
            value=1,
            base_value=2,
            examples=3,
            interval=0,
            created_ms=NOW_MS,
        ),
        by,
    )


# ---- there and back ------------------------------------------------------------------------------------------


def test_an_adapter_comes_whole_and_once_only(home: Home, away: Home, tmp_path: Path) -> None:
    made = home.made("first")
    path = tmp_path / "a.orchpack"
    told = export(home.registry, made.id, path)
    assert (told.adapter, told.ancestors, told.records, told.size) == (made.id, (), (), path.stat().st_size)
    came = take_in(away.registry, path)
    (admission,) = came.admissions
    assert (admission.id, admission.verdict, admission.new, admission.row.origin) == (
        made.id,
        "admitted",
        True,
        "imported",
    )
    assert away.registry.manifest(made.id).envelope == home.registry.manifest(made.id).envelope
    before = away.traces()
    again = take_in(away.registry, path)
    assert ([a.new for a in again.admissions], again.records, again.refused) == ([False], (), ())
    assert away.traces() == before
    assert export(away.registry, made.id, tmp_path / "b.orchpack").size == told.size
    assert (tmp_path / "b.orchpack").read_bytes() == path.read_bytes()


def test_a_folder_that_came_before_is_the_same_adapter(home: Home) -> None:
    folder = home.folder("made")
    told: dict[str, Any] = {"name": "mine", "description": "d", "licence": "MIT", "base": home.base.digest}
    assert imported_before(home.registry, folder, **told) is None
    claim = msgspec.structs.replace(home.claim(folder), name="mine", description="d", licence="MIT")
    id = home.admit(folder, claim, origin="imported").id
    again = imported_before(home.registry, folder, **told)
    assert again is not None
    assert (again.id, again.new) == (id, False)
    home.registry.remove(id)
    back = imported_before(home.registry, folder, **told)  # wanted again
    assert back is not None
    assert (back.id, back.new, back.verdict) == (id, True, "admitted")
    for other in ({"name": "other"}, {"description": ""}, {"licence": ""}, {"base": bytes(32)}):
        assert imported_before(home.registry, folder, **(told | other)) is None
    assert imported_before(home.registry, home.folder("other", tensors=lora_tensors(7)), **told) is None


def test_lineage_and_what_is_known_come_along(home: Home, away: Home, tmp_path: Path) -> None:
    first = home.made("first", 1, signer=BOB)
    second = home.made("second", 2, initial=first.id)
    third = home.made("third", 3, initial=second.id)
    rotation = sign(KeyRotation(old=BOB.public_key, new=MALLORY.public_key, created_ms=NOW_MS), BOB, MALLORY)
    home.told(_attested(third.id), rotation)
    path = tmp_path / "a.orchpack"
    told = export(home.registry, third.id, path)
    assert set(told.ancestors) == {first.id, second.id}
    assert set(told.records) == {_attested(third.id).id, rotation.id}
    came = take_in(away.registry, path)
    assert [admission.id for admission in came.admissions] == [third.id]
    assert set(came.records) == set(told.records)
    assert not away.registry.has_adapter(second.id)


def test_a_revoked_ancestor_is_known_to_be_revoked_without_a_network(home: Home, away: Home, tmp_path: Path) -> None:
    first = home.made("first", 1, signer=BOB)
    second = home.made("second", 2, initial=first.id)
    home.told(_revoked(first.id, BOB))
    assert home.registry.adapter(second.id).state == "quarantined"
    export(home.registry, second.id, tmp_path / "a.orchpack")
    (admission,) = take_in(away.registry, tmp_path / "a.orchpack").admissions
    assert admission.verdict == "quarantined"
    assert first.id in admission.reason


def test_strangers_revocations_stay_where_they_are(home: Home, tmp_path: Path) -> None:
    folder = home.folder("first")
    signed = sign(home.claim(folder), ALICE)
    home.told(_revoked(signed.id, MALLORY))  # kept, as nobody knows yet whose adapter it is
    first = home.admit_signed(signed, folder)
    assert export(home.registry, first.id, tmp_path / "a.orchpack").records == ()


def test_a_revoked_adapter_does_not_come_in_by_hand_either(home: Home, away: Home, tmp_path: Path) -> None:
    first = home.made("first", 1, signer=BOB)
    home.told(_revoked(first.id, BOB))
    export(home.registry, first.id, tmp_path / "a.orchpack")
    before = away.traces()
    with pytest.raises(AdapterRevoked):
        take_in(away.registry, tmp_path / "a.orchpack")
    assert not away.registry.has_adapter(first.id)
    assert [trace for trace in away.traces() if trace not in before and not trace.startswith("journal")] == []


# ---- at the door ---------------------------------------------------------------------------------------------


def _pack(home: Home, path: Path, folder: Path, signed: Verified[Manifest], *records: Verified[Record]) -> Path:
    bundle.write(path, [signed, *records], {e.sha256: folder / e.path for e in signed.record.files})
    return path


def test_a_bundle_goes_through_the_same_door(home: Home, away: Home, tmp_path: Path) -> None:
    tensors = lora_tensors()
    next(iter(tensors.values()))[0, 0] = float("nan")
    folder = home.folder("nan", tensors=tensors)
    path = _pack(home, tmp_path / "a.orchpack", folder, sign(home.claim(folder), ALICE))
    before = away.traces()
    with pytest.raises(TensorsRefused):
        take_in(away.registry, path)
    assert away.traces() == before


def test_of_two_adapters_the_good_one_comes_in(home: Home, away: Home, tmp_path: Path) -> None:
    tensors = lora_tensors(5)
    next(iter(tensors.values()))[0, 0] = float("inf")
    bad, good = home.folder("bad", tensors=tensors), home.folder("good")
    signed = [sign(home.claim(folder, name=folder.name), ALICE) for folder in (bad, good)]
    files = {e.sha256: folder / e.path for s, folder in zip(signed, (bad, good), strict=True) for e in s.record.files}
    bundle.write(tmp_path / "a.orchpack", signed, files)
    came = take_in(away.registry, tmp_path / "a.orchpack")
    assert [admission.id for admission in came.admissions] == [signed[1].id]
    assert [(away_.id, away_.code) for away_ in came.refused] == [(signed[0].id, TensorsRefused.code)]


def test_nothing_is_left_of_a_bundle_with_a_rotten_blob(home: Home, away: Home, tmp_path: Path) -> None:
    made = home.made("first", 1, signer=BOB)
    home.told(_attested(made.id))
    path = tmp_path / "a.orchpack"
    export(home.registry, made.id, path)
    data = bytearray(path.read_bytes())
    with path.open("rb") as file:
        member = bundle.read_layout(file)[-1]
    data[member.start + member.size // 2] ^= 1
    path.write_bytes(data)
    before = away.traces()
    with pytest.raises(DigestMismatch):
        take_in(away.registry, path)
    assert away.traces() == before


def test_a_disk_without_room_is_told_before_anything_is_written(
    home: Home, away: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = home.made("first")
    export(home.registry, made.id, tmp_path / "a.orchpack")
    before = away.traces()
    monkeypatch.setattr(blobs, "DISK_RESERVE", 1 << 62)
    monkeypatch.setattr(exchange, "staging", None)
    with pytest.raises(DiskFull):
        take_in(away.registry, tmp_path / "a.orchpack")
    assert away.traces() == before


def test_what_is_lost_here_is_not_written_out(home: Home, tmp_path: Path) -> None:
    made = home.made("first")
    path = home.registry.files(made.id)["adapter_model.safetensors"]
    path.unlink()
    with pytest.raises(BlobUnknown):
        export(home.registry, made.id, tmp_path / "a.orchpack")
    assert not (tmp_path / "a.orchpack").exists()


def test_progress_ends_at_the_whole(home: Home, away: Home, tmp_path: Path) -> None:
    made = home.made("first")
    export(home.registry, made.id, tmp_path / "a.orchpack")
    seen: list[tuple[int, int]] = []
    take_in(away.registry, tmp_path / "a.orchpack", lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0


def test_what_a_crash_left_is_cleared_at_start(away: Home) -> None:
    left = away.root / "data" / "adapters" / ".import-abc"
    left.mkdir()
    (left / "x").write_bytes(b"x")
    away.close()
    away.open()
    assert not left.exists()


# ---- a base that comes later ---------------------------------------------------------------------------------


def _without_base(home: Home, away: Home, tmp_path: Path) -> tuple[str, Path]:
    """An adapter that is quarantined at `away` for want of its base, and that base's folder."""
    other = write_base(tmp_path / "other", {name: values + 1 for name, values in _tensors().items()})
    home.registry.known_bases.add("other", other)
    fingerprint = home.registry.base("other")
    folder = home.folder("far")
    claim = home.claim(folder, base=BaseRef(fingerprint=fingerprint.digest, hint="other", architecture="x"))
    made = home.admit_signed(sign(claim, ALICE), folder)
    export(home.registry, made.id, tmp_path / "a.orchpack")
    (came,) = take_in(away.registry, tmp_path / "a.orchpack").admissions
    assert came.verdict == "quarantined"
    return came.id, other


def _tensors() -> dict[str, Any]:
    return base_tensors(3)


def test_an_adapter_is_let_out_when_its_base_comes(home: Home, away: Home, tmp_path: Path) -> None:
    id, other = _without_base(home, away, tmp_path)
    base = away.registry.known_bases.add("mine", other)
    assert judge_again(away.registry, base.fingerprint) == [id]
    assert away.registry.adapter(id).state == "admitted"
    assert judge_again(away.registry, base.fingerprint) == []
    away.close()
    away.open()
    assert away.registry.adapter(id).state == "admitted"


def test_a_linked_base_will_do(home: Home, away: Home, tmp_path: Path) -> None:
    id, other = _without_base(home, away, tmp_path)
    wanted = home.registry.base("other").fingerprint
    shutil.rmtree(other)
    away.registry.known_bases.link("tiny", wanted)
    assert judge_again(away.registry, wanted) == [id]


def test_a_base_of_other_shapes_keeps_it_in(home: Home, away: Home, tmp_path: Path) -> None:
    id, _ = _without_base(home, away, tmp_path)
    wanted = home.registry.base("other").fingerprint
    small = {name: values for name, values in _tensors().items() if "layers.1" not in name}
    base = away.registry.known_bases.add("small", write_base(tmp_path / "small", small))
    away.registry.known_bases.link(base.fingerprint, wanted)
    assert judge_again(away.registry, wanted) == []
    row = away.registry.adapter(id)
    assert row.state == "quarantined"
    assert "not here" not in row.reason


# ---- random and mutated bundles ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, bytes]]:
    """A home that nothing came to, and a bundle with an adapter, its ancestor and a record."""
    root = tmp_path_factory.mktemp("fuzzed")
    home, away = Home(root / "home"), Home(root / "away", author=MALLORY)
    first = home.made("first")
    second = home.made("second", seed=1, initial=first.id)
    home.told(_attested(second.id))
    export(home.registry, second.id, root / "a.orchpack")
    home.close()
    yield away, (root / "a.orchpack").read_bytes()
    away.close()


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_a_mutated_bundle_leaves_a_number_and_no_file(fuzzed: tuple[Home, bytes], data: st.DataObject) -> None:
    home, honest = fuzzed
    start = data.draw(st.integers(0, len(honest)))
    length = data.draw(st.integers(0, 40) | st.just(len(honest)))
    changed = honest[:start] + data.draw(st.binary(max_size=40)) + honest[start + length :]
    assume(changed != honest)
    path = home.root / "changed.orchpack"
    path.write_bytes(changed)
    before = home.traces()
    with pytest.raises(OrchdError):
        take_in(home.registry, path)
    assert home.traces() == before == []
    assert not list((home.root / "data" / "adapters").iterdir())
    assert home.registry.local.all(Received) == []
