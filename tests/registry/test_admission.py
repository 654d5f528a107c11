"""Does each check at the door hold off something that would come in without it?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchd import identity
from orchd.errors import (
    AdapterConfigRefused,
    AdapterRevoked,
    AuthorBlocked,
    ClaimRefused,
    DigestMismatch,
    FileListRefused,
    FromTheFuture,
    Refused,
    SignatureInvalid,
    SizeRefused,
    TensorsRefused,
)
from orchd.records import BaseRef, FileEntry, Manifest, Verified, sign
from orchd.registry import ADMITTED, QUARANTINED, admission, figures, parts, peft_config, weights
from orchd.registry.admission import (
    CHECKS,
    CONFIG,
    CONTENT_CHECKS,
    RECORD_CHECKS,
    WEIGHTS,
    Candidate,
    Known,
    judge,
)
from orchd.registry.describe import adapter_info, file_entries
from tests.helpers import (
    ALICE,
    HIDDEN,
    HONEST_INFO,
    LAYERS,
    MODULES,
    RANK,
    Lab,
    Safetensors,
    Values,
    lora_config,
    lora_tensors,
    rough,
)

A0, B0 = (f"base_model.model.{MODULES[0]}.lora_{half}.weight" for half in "AB")


# ---- honest adapters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("origin", ["trained", "averaged", "fetched", "imported"])
def test_an_honest_adapter_is_admitted(lab: Lab, dtype: str, origin: str) -> None:
    folder = lab.folder(dtype=dtype)
    found = lab.admit(folder, origin=origin)
    assert (found.verdict, found.reason, found.new) == (ADMITTED, "", True)
    assert (found.row.origin, found.row.dtype, found.row.rank) == (origin, dtype, RANK)
    for name, path in lab.registry.files(found.id).items():
        assert path.read_bytes() == (folder / name).read_bytes()


def test_with_rank_patterns_rslora_and_a_readme(lab: Lab) -> None:
    tensors = lora_tensors(rank=RANK) | lora_tensors(rank=1, modules=MODULES[:1])
    config = lora_config(use_rslora=True, rank_pattern={MODULES[0]: 1}, alpha_pattern={MODULES[0]: 1})
    folder = lab.folder(tensors=tensors, config=config)
    (folder / "README.md").write_text("Hello.")
    found = lab.admit(folder)
    assert found.verdict == ADMITTED
    assert lab.registry.files(found.id).keys() == {CONFIG, WEIGHTS, "README.md"}


def test_what_a_newer_writer_puts_under_extra_is_admitted_kept_and_not_read(lab: Lab) -> None:
    extra = {"next": {"version": 2, "bytes": b"\x00\xff", "list": [1, -1, None, True, "ü"]}}
    folder = lab.folder()
    found = lab.admit(folder, lab.claim(folder, extra=extra))
    assert found.verdict == ADMITTED
    lab.registry.close()
    lab.open()
    assert lab.registry.manifest(found.id).record.extra == extra


def test_ten_minutes_of_clock_difference_are_forgiven(lab: Lab) -> None:
    folder = lab.folder()
    assert lab.admit(folder, lab.claim(folder, created_ms=lab.now_ms + admission.CLOCK_WINDOW_MS)).verdict == ADMITTED
    assert lab.admit(folder, lab.claim(folder, created_ms=0)).verdict == ADMITTED


def test_the_same_adapter_again_is_told_as_such(lab: Lab) -> None:
    folder = lab.folder()
    first, again = lab.admit(folder), lab.admit(folder)
    assert (first.id, first.new, again.new) == (again.id, True, False)
    assert len(lab.registry.adapters()) == 1


def test_an_adapter_for_an_unknown_base_is_kept_apart(lab: Lab) -> None:
    folder = lab.folder()
    stranger = BaseRef(fingerprint=bytes(32), hint="who knows", architecture="LlamaForCausalLM")
    found = lab.admit(folder, lab.claim(folder, base=stranger))
    assert found.verdict == QUARANTINED
    assert "base" in found.reason
    assert [row.id for row in lab.registry.adapters(state=QUARANTINED)] == [found.id]
    assert lab.registry.adapters(state=ADMITTED) == []


# ---- each check, with an attack that only it holds off -----------------------------------------------------------

Out = Callable[[pytest.MonkeyPatch], None]
"""Takes a check out."""


@dataclass(frozen=True)
class Attack:
    """`make` gives a folder and what is claimed about it; with `out` done, it comes in."""

    name: str
    error: type[Refused]
    out: Out
    make: Callable[[Lab], tuple[Path, Manifest]]


def _nothing(*_: object, **__: object) -> None:
    return None


def _without(check: str) -> Out:
    def out(monkeypatch: pytest.MonkeyPatch) -> None:
        assert check in {each.__name__ for each in CHECKS}
        for name in ("RECORD_CHECKS", "CONTENT_CHECKS"):
            kept = tuple(each for each in getattr(admission, name) if each.__name__ != check)
            monkeypatch.setattr(admission, name, kept)

    return out


def _neutral(module: Any, function: str, other: Any = _nothing) -> Out:
    return lambda monkeypatch: monkeypatch.setattr(module, function, other)


def _weights(change: Callable[[dict[str, Values]], Any], **config: Any) -> Callable[[Lab], tuple[Path, Manifest]]:
    """An adapter with changed numbers or settings, described honestly."""

    def make(lab: Lab) -> tuple[Path, Manifest]:
        tensors = lora_tensors()
        change(tensors)
        folder = lab.folder(tensors=tensors, config=lora_config(**config))
        return folder, lab.claim(folder, adapter_info(folder))

    return make


def _file(damage: Callable[[Safetensors], bytes]) -> Callable[[Lab], tuple[Path, Manifest]]:
    """A damaged weights file that is described as the honest one."""

    def make(lab: Lab) -> tuple[Path, Manifest]:
        folder = lab.folder()
        (folder / WEIGHTS).write_bytes(damage(Safetensors.of(lora_tensors())))
        return folder, lab.claim(folder, HONEST_INFO)

    return make


def _claims(**changes: Any) -> Callable[[Lab], tuple[Path, Manifest]]:
    """An honest folder about which the manifest lies."""

    def make(lab: Lab) -> tuple[Path, Manifest]:
        folder = lab.folder()
        return folder, lab.claim(folder, msgspec.structs.replace(HONEST_INFO, **changes))

    return make


def _future(lab: Lab) -> tuple[Path, Manifest]:
    folder = lab.folder()
    return folder, lab.claim(folder, created_ms=lab.now_ms + admission.CLOCK_WINDOW_MS + 1)


def _entry(lab: Lab, change: Callable[[FileEntry], FileEntry]) -> tuple[Path, Manifest]:
    """An honest folder with one changed line (the weights) in the file list."""
    folder = lab.folder()
    claim = lab.claim(folder)
    files = tuple(change(entry) if entry.path == WEIGHTS else entry for entry in claim.files)
    return folder, msgspec.structs.replace(claim, files=files)


def _wrong_chunk(lab: Lab) -> tuple[Path, Manifest]:
    return _entry(lab, lambda entry: msgspec.structs.replace(entry, chunks=(bytes(32), *entry.chunks[1:])))


def _more_files(name: str) -> Callable[[Lab], tuple[Path, Manifest]]:
    def make(lab: Lab) -> tuple[Path, Manifest]:
        folder = lab.folder()
        (folder / "payload").write_bytes(b"x")
        claim = lab.claim(folder)
        more = FileEntry(
            path=name,
            size=1,
            sha256=hashlib.sha256(b"x").digest(),
            chunk_size=4096,
            chunks=(hashlib.sha256(b"x").digest(),),
        )
        return folder, msgspec.structs.replace(claim, files=(*claim.files, more))

    return make


def _large_readme(lab: Lab) -> tuple[Path, Manifest]:
    folder = lab.folder()
    (folder / "README.md").write_bytes(bytes((1 << 20) + 1))
    return folder, lab.claim(folder)


def _unknown_setting(lab: Lab) -> tuple[Path, Manifest]:
    folder = lab.folder(config=lora_config())
    (folder / CONFIG).write_text(json.dumps(lora_config(trust_remote_code=True)))
    return folder, lab.claim(folder, HONEST_INFO)


def _twice(file: Safetensors) -> bytes:
    inner = json.dumps(file.entries)
    return file.with_header(f'{inner[:-1]}, "{A0}": {json.dumps(file.entries[A0])}}}'.encode())


def _hole(file: Safetensors) -> bytes:
    last = file.entries[max(file.entries, key=lambda name: file.entries[name]["data_offsets"])]
    last["data_offsets"] = [offset + 8 for offset in last["data_offsets"]]
    return replace(file, data=file.data + bytes(8)).file()


def _overlap(file: Safetensors) -> bytes:
    file.entries[B0] |= {"data_offsets": file.entries[A0]["data_offsets"]}
    return file.file()


def _nan(tensors: dict[str, Values]) -> None:
    tensors[B0][0, 0] = np.nan


def _infinite(tensors: dict[str, Values]) -> None:
    tensors[A0][-1, -1] = -np.inf


def _other_shape(tensors: dict[str, Values]) -> None:
    tensors[A0] = rough(np.ones((RANK, HIDDEN + 1), np.float32))


def _other_module(tensors: dict[str, Values]) -> None:
    tensors |= lora_tensors(modules=[f"model.layers.{LAYERS}.self_attn.q_proj"])


def _other_rank(tensors: dict[str, Values]) -> None:
    tensors |= lora_tensors(modules=MODULES[:1], rank=RANK + 1)


def _flat(tensors: dict[str, Values]) -> None:
    tensors[A0] = tensors[A0].reshape(-1)


def _half_the_targets(tensors: dict[str, Values]) -> None:
    for name in [name for name in tensors if "v_proj" in name]:
        del tensors[name]


def _half_the_layers(tensors: dict[str, Values]) -> None:
    for name in [name for name in tensors if "layers.0" in name]:
        del tensors[name]


SHAPES = _neutral(parts, "check_shapes")
CLAIMS = _without("check_claims")
COVER = _neutral(weights, "_check_cover")
APPLY = _neutral(parts, "check_settings")
FINITE = _without("check_finite")
SIZES = _without("check_sizes")
ATTACKS = [
    Attack("manifest from the future", FromTheFuture, _without("check_clock"), _future),
    Attack("one file more", FileListRefused, _without("check_file_list"), _more_files("run.py")),
    Attack("readme of a megabyte", SizeRefused, SIZES, _large_readme),
    Attack("chunk that is another", DigestMismatch, _without("check_digests"), _wrong_chunk),
    Attack("NaN weight", TensorsRefused, FINITE, _weights(_nan)),
    Attack("infinite weight", TensorsRefused, FINITE, _weights(_infinite)),
    Attack("shape of another base", TensorsRefused, _without("check_tensors"), _weights(_other_shape)),
    Attack("shape of another base, compared", TensorsRefused, SHAPES, _weights(_other_shape)),
    Attack("module of another base", TensorsRefused, SHAPES, _weights(_other_module)),
    Attack("rank that is not the config's", TensorsRefused, SHAPES, _weights(_other_rank)),
    Attack("tensor of one dimension", TensorsRefused, SHAPES, _weights(_flat)),
    Attack("a layer left out", TensorsRefused, _neutral(parts, "_check_all_targets"), _weights(_half_the_layers)),
    Attack("target without factors", TensorsRefused, _without("check_tensors"), _weights(_half_the_targets)),
    Attack("module that is no target", TensorsRefused, APPLY, _weights(_nothing, target_modules=["q_proj"])),
    Attack("pattern for no module", AdapterConfigRefused, APPLY, _weights(_nothing, alpha_pattern={"q.proj": 1e6})),
    Attack("rank that lies", ClaimRefused, CLAIMS, _claims(rank=RANK + 1)),
    Attack("alpha that lies", ClaimRefused, CLAIMS, _claims(alpha_milli=1)),
    Attack("rslora that lies", ClaimRefused, CLAIMS, _claims(rslora=True)),
    Attack("targets that lie", ClaimRefused, CLAIMS, _claims(target_modules=("q_proj",))),
    Attack("targets in another order", ClaimRefused, CLAIMS, _claims(target_modules=("v_proj", "q_proj"))),
    Attack("dtype that lies", ClaimRefused, CLAIMS, _claims(dtype="BF16")),
    Attack("parameter count that lies", ClaimRefused, CLAIMS, _claims(parameters=1)),
    Attack("format that lies", ClaimRefused, CLAIMS, _claims(format="gguf")),
    Attack("ability that lies", ClaimRefused, CLAIMS, _claims(capabilities=("averageable",))),
    Attack("hole", TensorsRefused, COVER, _file(_hole)),
    Attack("overlap", TensorsRefused, COVER, _file(_overlap)),
    Attack("trailing bytes", TensorsRefused, COVER, _file(lambda file: file.file() + b"MZ")),
    Attack("tensor given twice", TensorsRefused, _neutral(weights, "_unique", dict), _file(_twice)),
    Attack("setting that nobody knows", AdapterConfigRefused, _neutral(peft_config, "_check_keys"), _unknown_setting),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_the_check_holds_it_off_and_nothing_else_would(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, attack: Attack
) -> None:
    folder, claim = attack.make(lab)
    signed = sign(claim, ALICE)
    files = {entry.path: _on_disk(folder, entry.path) for entry in claim.files}
    with pytest.raises(attack.error) as caught:
        lab.registry.admit(signed.envelope, files, origin="fetched")
    assert type(caught.value) is attack.error
    assert lab.traces() == []
    assert lab.registry.adapters() == []

    attack.out(monkeypatch)
    assert lab.registry.admit(signed.envelope, files, origin="fetched").verdict == ADMITTED


def _on_disk(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).exists() else folder / "payload"


def test_without_the_signature_check_anybody_would_be_anybody(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lab.folder()
    signed = sign(lab.claim(folder), ALICE)
    position = signed.envelope.rfind(b"\xa3sig") + 10
    envelope = signed.envelope[:position] + bytes([signed.envelope[position] ^ 1]) + signed.envelope[position + 1 :]
    forged = replace(signed, envelope=envelope)
    with pytest.raises(SignatureInvalid):
        lab.admit_signed(forged, folder)
    assert lab.traces() == []
    monkeypatch.setattr(identity, "verify", lambda *_: True)
    assert lab.admit_signed(forged, folder).verdict == ADMITTED


def _candidate(lab: Lab, **known: str) -> Candidate:
    folder = lab.folder()
    signed = sign(lab.claim(folder), ALICE)
    files = {entry.path: folder / entry.path for entry in signed.record.files}
    return Candidate(signed, files, lab.base, lab.now_ms, Known(**known))


@pytest.mark.parametrize(
    ("check", "known", "error"),
    [("check_author", "blocked", AuthorBlocked), ("check_revocation", "revoked", AdapterRevoked)],
)
def test_what_was_decided_here_holds_at_the_door(lab: Lab, check: str, known: str, error: type[Refused]) -> None:
    candidate = _candidate(lab, **{known: "it sends spam"})
    with pytest.raises(error, match="it sends spam"):
        judge(candidate, RECORD_CHECKS)
    assert judge(candidate, [each for each in CHECKS if each.__name__ != check]) == []


def test_the_checks_by_name() -> None:
    """One that is taken out, or stands elsewhere, is missed here too."""
    assert [check.__name__.removeprefix("check_") for check in RECORD_CHECKS] == [
        "author", "revocation", "clock", "sizes", "file_list",
    ]  # fmt: skip
    assert [check.__name__.removeprefix("check_") for check in CONTENT_CHECKS] == [
        "digests", "header", "config", "tensors", "finite", "norms", "claims", "base",
    ]  # fmt: skip


def test_header_and_settings_are_checks_of_their_own(lab: Lab) -> None:
    """Later checks read them too; each must refuse before those do."""
    candidate = _candidate(lab)
    (lab.root / "made/adapter" / CONFIG).write_text("{}")
    with pytest.raises(AdapterConfigRefused):
        admission.check_config(candidate)
    candidate = _candidate(lab)
    (lab.root / "made/adapter" / WEIGHTS).write_bytes(b"PK")
    with pytest.raises(TensorsRefused):
        admission.check_header(candidate)


def test_without_its_check_an_unknown_base_would_be_admitted(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lab.folder()
    stranger = BaseRef(fingerprint=bytes(32), hint="who knows", architecture="LlamaForCausalLM")
    _without("check_base")(monkeypatch)
    assert lab.admit(folder, lab.claim(folder, base=stranger)).verdict == ADMITTED


def test_the_files_are_read_once_for_all_checks(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    look = figures.look
    monkeypatch.setattr(figures, "look", lambda *args: looks.append(args) or look(*args))
    assert judge(_candidate(lab), CHECKS) == []
    assert len(looks) == 1


# ---- the file list -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../../identity.pem",
        "/etc/passwd",
        "adapter_model.bin",
        "adapter_config.json\0",
        "./adapter_config.json",
        "Adapter_config.json",
        "sub/adapter_config.json",
        "README.MD",
        "",
        ".",
        CONFIG,
    ],
    ids=repr,
)
def test_no_other_name_ever_touches_the_disk(lab: Lab, name: str) -> None:
    folder, claim = _more_files(name)(lab)
    before = sorted(lab.root.rglob("*"))
    files = {entry.path: lab.root / "nowhere" for entry in claim.files}
    with pytest.raises(Refused):
        lab.registry.admit(sign(claim, ALICE).envelope, files, origin="fetched")
    assert sorted(lab.root.rglob("*")) == before
    assert folder.exists()


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_both_files_must_be_there(lab: Lab, missing: str) -> None:
    folder = lab.folder()
    claim = lab.claim(folder)
    claim = msgspec.structs.replace(claim, files=tuple(entry for entry in claim.files if entry.path != missing))
    with pytest.raises(FileListRefused):
        lab.admit(folder, claim)


def test_the_files_that_came_are_those_that_were_promised(lab: Lab) -> None:
    folder = lab.folder()
    signed = sign(lab.claim(folder), ALICE)
    for files in ({}, {CONFIG: folder / CONFIG}, {name: folder / name for name in (CONFIG, WEIGHTS, "README.md")}):
        with pytest.raises(FileListRefused, match="came"):
            lab.registry.admit(signed.envelope, files, origin="fetched")


@pytest.mark.parametrize("more", [-1, 1, 10_000])
def test_a_chunk_list_fits_its_file(lab: Lab, more: int) -> None:
    folder, claim = _entry(lab, lambda entry: msgspec.structs.replace(entry, chunks=(bytes(32),) * (1 + more)))
    with pytest.raises(SizeRefused, match="chunks"):
        lab.admit(folder, claim)


@pytest.mark.parametrize("change", [lambda data: data + b"x", lambda data: data[:-1], lambda data: data[:-1] + b"x"])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_other_bytes_than_were_signed_are_refused(lab: Lab, name: str, change: Callable[[bytes], bytes]) -> None:
    folder = lab.folder()
    signed = sign(lab.claim(folder), ALICE)
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(DigestMismatch, match=name):
        lab.admit_signed(signed, folder)
    assert lab.traces() == []


def test_chunks_that_fit_under_a_wrong_whole_are_refused(lab: Lab) -> None:
    folder, claim = _entry(lab, lambda entry: msgspec.structs.replace(entry, sha256=bytes(32)))
    with pytest.raises(DigestMismatch):
        lab.admit(folder, claim)


@pytest.mark.parametrize("more", [-1, 1, 1000])
def test_a_size_that_lies_is_refused(lab: Lab, more: int) -> None:
    """The digests are right, of the whole and of its one chunk."""
    folder, claim = _entry(lab, lambda entry: msgspec.structs.replace(entry, size=entry.size + more))
    with pytest.raises(DigestMismatch):
        lab.admit(folder, claim)


def test_many_small_chunks_are_as_good(lab: Lab) -> None:
    folder = lab.folder()
    data = (folder / WEIGHTS).read_bytes()
    pieces = [data[start : start + 4096] for start in range(0, len(data), 4096)]
    chunks = tuple(hashlib.sha256(piece).digest() for piece in pieces)
    _, claim = _entry(lab, lambda entry: msgspec.structs.replace(entry, chunk_size=4096, chunks=chunks))
    assert lab.admit(folder, claim).verdict == ADMITTED


# ---- names of tensors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.lm_head.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        f"base_model.model.{MODULES[0]}.lora_magnitude_vector",
        f"base_model.model.{MODULES[0]}.base_layer.bias",
        f"base_model.model.{MODULES[0]}.lora_A.default.weight",
        f"base_model.model.{MODULES[0]}.lora_A.weight\n",
        f"{MODULES[0]}.lora_A.weight",
        "base_model.model..lora_A.weight/../x",
        f"base_model.model.{'a' * 201}.lora_A.weight",
        f"base_model.model.{'a.' * 50_000}q_proj.lora_A.weight",
        "\ud800",
        "",
    ],
    ids=lambda name: repr(name)[:60],
)
def test_a_tensor_that_is_no_factor_of_a_plain_lora_is_refused(lab: Lab, name: str) -> None:
    file = Safetensors.of(lora_tensors())
    file.entries[name] = {"dtype": "F32", "shape": [1], "data_offsets": [len(file.data), len(file.data) + 4]}
    folder = lab.folder()
    (folder / WEIGHTS).write_bytes(replace(file, data=file.data + bytes(4)).file())
    with pytest.raises(TensorsRefused, match="no part of a LoRA"):
        lab.admit(folder, lab.claim(folder, HONEST_INFO))


@pytest.mark.parametrize("half", [A0, B0])
def test_half_a_pair_is_refused(lab: Lab, half: str) -> None:
    tensors = lora_tensors()
    del tensors[half]
    folder = lab.folder(tensors=tensors)
    with pytest.raises(TensorsRefused, match="only its"):
        lab.admit(folder)


def test_one_tensor_of_another_dtype_is_refused(lab: Lab) -> None:
    file, wide = Safetensors.of(lora_tensors(), "BF16"), Safetensors.of(lora_tensors(), "F32")
    names = sorted(wide.entries)
    data, entries = b"", {}
    for name in names:
        source = wide if name == names[0] else file
        start, end = source.entries[name]["data_offsets"]
        entries[name] = source.entries[name] | {"data_offsets": [len(data), len(data) + end - start]}
        data += source.data[start:end]
    folder = lab.folder()
    (folder / WEIGHTS).write_bytes(Safetensors(entries, data).file())
    for dtype in ("F32", "BF16"):
        with pytest.raises(ClaimRefused, match="dtype"):
            lab.admit(folder, lab.claim(folder, msgspec.structs.replace(HONEST_INFO, dtype=dtype)))


def test_an_adapter_with_empty_tensors_is_refused_with_a_number(lab: Lab) -> None:
    """A of shape [rank, 0] has no bytes; for a base that is not here, no shape is known to compare with."""
    tensors = {name: np.zeros((RANK, 0) if ".lora_A." in name else (0, RANK), np.float32) for name in lora_tensors()}
    folder = lab.folder(tensors=tensors)
    with pytest.raises(TensorsRefused):
        lab.admit(folder)
    stranger = BaseRef(fingerprint=bytes(32), hint="who knows", architecture="LlamaForCausalLM")
    assert lab.admit(folder, lab.claim(folder, base=stranger)).verdict == QUARANTINED


@pytest.mark.parametrize(
    ("half", "shape"),
    [
        (A0, (RANK, HIDDEN, 1)),
        (B0, (HIDDEN, RANK, 1)),
        (A0, (RANK + 1, HIDDEN)),
        (B0, (HIDDEN, RANK + 1)),
        (A0, (RANK, HIDDEN + 1)),
        (B0, (HIDDEN + 1, RANK)),
    ],
)
def test_a_factor_of_another_shape_is_refused(lab: Lab, half: str, shape: tuple[int, ...]) -> None:
    folder = lab.folder(tensors=lora_tensors() | {half: np.ones(shape, np.float32)})
    with pytest.raises(TensorsRefused, match=MODULES[0]):
        lab.admit(folder)


def test_the_largest_readme_is_taken(lab: Lab) -> None:
    folder = lab.folder()
    (folder / "README.md").write_bytes(bytes(1 << 20))
    assert lab.admit(folder).verdict == ADMITTED


# ---- order, and checks that others bring ----------------------------------------------------------------------------


def test_cheap_and_decisive_checks_come_first(lab: Lab) -> None:
    """One fault is mended after the other; each time the next check in the order refuses."""
    folder, claim = _weights(_nan)(lab)
    good = claim.files
    lying = msgspec.structs.replace(claim.adapter, rank=RANK + 1)
    settings = (folder / CONFIG).read_bytes()
    bad_settings = json.dumps(lora_config(trust_remote_code=True)).encode()
    bad_names = tuple(msgspec.structs.replace(entry, path=entry.path.upper()) for entry in good)
    bad_digest = tuple(msgspec.structs.replace(entry, sha256=bytes(32)) for entry in good)
    bad_chunk = tuple(msgspec.structs.replace(entry, chunks=(bytes(32),)) for entry in good)
    bad_size = tuple(msgspec.structs.replace(entry, size=1 << 40) for entry in good)
    late = lab.now_ms + admission.CLOCK_WINDOW_MS + 1
    for changes, config, error in (
        ({"created_ms": late, "files": bad_size}, bad_settings, FromTheFuture),
        ({"files": bad_size}, bad_settings, SizeRefused),
        ({"files": bad_names}, bad_settings, FileListRefused),
        ({"files": bad_digest}, bad_settings, DigestMismatch),
        ({"files": bad_chunk}, bad_settings, DigestMismatch),
        ({"adapter": lying}, bad_settings, AdapterConfigRefused),
        ({"adapter": lying}, settings, TensorsRefused),
    ):
        (folder / CONFIG).write_bytes(config)
        files = tuple(file_entries(folder)) if "files" not in changes else changes["files"]
        signed = sign(msgspec.structs.replace(claim, **(changes | {"files": files})), ALICE)
        with pytest.raises(error):
            lab.registry.admit(signed.envelope, {e.path: folder / e.path for e in files}, origin="fetched")
        assert lab.traces() == []


def test_a_further_check_may_quarantine_or_refuse(lab: Lab) -> None:
    folder, seen = lab.folder(), []

    def suspicious(candidate: Candidate) -> str | None:
        seen.append(candidate)
        return "its recipe is still being computed"

    def strict(_: Candidate) -> str | None:
        raise ClaimRefused("the recipe does not hold")

    with pytest.raises(ClaimRefused):
        lab.admit(folder, checks=[suspicious, strict])
    assert lab.traces() == []
    found = lab.admit(folder, checks=[suspicious])
    assert (found.verdict, found.reason) == (QUARANTINED, "its recipe is still being computed")
    assert isinstance(seen[0].manifest, Verified)
    assert seen[0].base == lab.base


def test_reasons_for_quarantine_are_told_together(lab: Lab) -> None:
    folder = lab.folder()
    stranger = BaseRef(fingerprint=bytes(32), hint="who knows", architecture="LlamaForCausalLM")
    found = lab.admit(folder, lab.claim(folder, base=stranger), checks=[lambda _: "and it is ugly"])
    assert "base" in found.reason
    assert found.reason.endswith("; and it is ugly")


# ---- random and mutated files ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("fuzz"))
    yield made
    made.registry.close()


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from([CONFIG, WEIGHTS]),
    st.integers(0, 1200),
    st.integers(0, 20),
    st.binary(max_size=20) | st.sampled_from([b"[", b"{", b'"', b"9" * 20, b"null", b"-1", b"1e999", b"NaN"]),
)
def test_mutated_files_are_refused_with_a_number_and_leave_nothing(
    one_lab: Lab, name: str, start: int, length: int, piece: bytes
) -> None:
    """Their author signs them as they are."""
    lab = one_lab
    folder = lab.folder()
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:start] + piece + data[start + length :])
    claim, before = lab.claim(folder, HONEST_INFO), lab.traces()
    try:
        found = lab.admit(folder, claim)
    except Refused:
        assert lab.traces() == before
    else:  # other numbers in the weights, maybe very large ones, or the same settings
        assert found.verdict == ADMITTED or "norm" in found.reason
