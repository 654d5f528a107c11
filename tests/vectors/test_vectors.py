"""Do orchd and a reader that knows only the page reach the verdicts that are written down?"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from orchd.average.recipe import recipe_digest
from orchd.errors import OrchdError, RecordMalformed, RecordNotDeterministic, RecordTooLarge, SignatureInvalid
from orchd.records import Manifest, sign, verify, verify_any
from orchd.records.codec import encode
from orchd.records.envelope import Envelope
from tests.helpers import ALICE, manifest, plain
from tests.vectors import independent, make

VECTORS: list[dict[str, Any]] = json.loads(make.FILE.read_text("utf-8"))["vectors"]
ERRORS: dict[str, type[OrchdError]] = {
    "malformed": RecordMalformed,
    "not_deterministic": RecordNotDeterministic,
    "signature": SignatureInvalid,
    "too_large": RecordTooLarge,
}
KINDS: dict[str, Any] = {name: kind for kind, name in make.KINDS.items()}
PAGES = {"SPEC-manifest.md": (Manifest, Envelope), "SPEC-records.md": tuple(make.KINDS)[1:]}


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_orchd_reaches_the_verdict(vector: dict[str, Any]) -> None:
    envelope, kind = bytes.fromhex(vector["envelope"]), KINDS[vector["kind"]]
    if vector["valid"]:
        assert verify(envelope, kind).id == vector["id"]
    else:
        with pytest.raises(ERRORS[vector["refused"]]):
            verify(envelope, kind)


def test_a_reader_that_knows_only_the_page_reaches_the_same_verdicts() -> None:
    assert independent.differences() == []
    for vector in VECTORS:
        if vector["valid"]:
            envelope = bytes.fromhex(vector["envelope"])
            record = verify(envelope, KINDS[vector["kind"]]).record
            assert independent.verify(envelope, vector["kind"])[1] == json_like(plain(record))


def json_like(value: Any) -> Any:
    """Tuples as lists."""
    if isinstance(value, dict):
        return {key: json_like(item) for key, item in value.items()}
    return [json_like(item) for item in value] if isinstance(value, list | tuple) else value


def test_both_write_the_same_bytes() -> None:
    assert independent.encode(json_like(plain(manifest()))) == encode(manifest())
    assert independent.verify(sign(manifest(), ALICE).envelope, "manifest")[0] == sign(manifest(), ALICE).id


def test_both_compute_the_same_recipe() -> None:
    found = [
        verify(bytes.fromhex(v["envelope"]), Manifest).record for v in VECTORS if v["kind"] == "manifest" and v["valid"]
    ]
    (average,) = [record for record in found if record.lineage]
    lineage = average.lineage
    assert lineage is not None
    wanted = recipe_digest(
        [(leaf.id, leaf.weight_ppm) for leaf in reversed(lineage.leaves)],
        method=lineage.method,
        rank=lineage.rank,
        strength_ppm=lineage.strength_ppm,
        dtype=average.adapter.dtype,
        previous=lineage.previous,
        outer=lineage.outer,
    )
    assert independent.recipe(json_like(plain(average))) == wanted == lineage.recipe


def test_the_other_reader_imports_nothing_of_orchd() -> None:
    file = Path(independent.__file__)
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not [name for name in names if name.split(".")[0] in ("orchd", "tests", "msgspec")]
    ended = subprocess.run([sys.executable, "-I", str(file)], capture_output=True, text=True, check=True)
    assert ended.stdout == "all as it should be\n"


def test_the_file_is_what_its_script_writes() -> None:
    """Run `python -m tests.vectors.make` after a change of the format, and look at the difference."""
    assert make.FILE.read_text("utf-8") == make.text()


def test_there_are_good_and_bad_vectors_of_every_kind_and_one_from_a_newer_writer() -> None:
    for kind, wanted in KINDS.items():
        own = [vector for vector in VECTORS if vector["kind"] == kind]
        assert {vector["valid"] for vector in own} == {True, False}
        reasons = {vector["refused"] for vector in own if not vector["valid"]}
        assert (
            reasons | ({"too_large"} if kind == "manifest" else set()) == ERRORS.keys()
        )  # a megabyte is too much here
        assert any(
            verify(bytes.fromhex(vector["envelope"]), wanted).record.extra for vector in own if vector["valid"]
        ), kind


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_whoever_takes_any_kind_reaches_the_verdict_too(vector: dict[str, Any]) -> None:
    """Except where an honest record of one kind stood for another, or a newer type has another limit."""
    envelope = bytes.fromhex(vector["envelope"])
    if vector["valid"]:
        verified = verify_any(envelope)
        assert (verified.id, verified.of(KINDS[vector["kind"]])) == (vector["id"], verified)
    elif vector["name"] == "an announcement where a manifest is wanted":
        assert verify_any(envelope).of(Manifest) is None
    else:
        with pytest.raises((RecordMalformed, RecordNotDeterministic, RecordTooLarge, SignatureInvalid)):
            verify_any(envelope)


@pytest.mark.parametrize("name", PAGES)
def test_the_page_names_every_field_and_no_other_format(name: str) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / name).read_text("utf-8")
    waiting: list[type[msgspec.Struct]] = list(PAGES[name])
    while waiting:
        for field in msgspec.structs.fields(waiting.pop()):
            assert re.search(rf"\b{field.encode_name}\b", page), field.encode_name
            waiting += [part for part in _parts(field.type) if issubclass(part, msgspec.Struct)]
    assert page.count("\n") < 66


def _parts(kind: Any) -> list[type]:
    """The classes in a type."""
    return [kind] if isinstance(kind, type) else [part for inner in get_args(kind) for part in _parts(inner)]
