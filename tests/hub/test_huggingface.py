"""Bases of the Hugging Face hub, against a server of this machine that answers as the hub does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchd.errors import DigestMismatch, HubGated, HubRefused, HubUnreachable, OrchdError, ParamsInvalid
from orchd.hub import adding
from orchd.hub.adding import HubSource
from orchd.hub.huggingface import Hub, token
from tests.hub.server import COMMIT, TOKEN, FakeHub, serving

WEIGHTS = bytes(range(256)) * 800
FILES = {
    "README.md": b"hello",
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "modeling_own.py": b"import os",
    "../escape.json": b"{}",
    "onnx/model.onnx": b"other",
    "model.safetensors": WEIGHTS,
}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serving(FakeHub(files=dict(FILES), large=frozenset({"model.safetensors", "small.gguf"}))) as running:
        yield running


def listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


async def fetch(hub: FakeHub, folder: Path, **more: Any) -> None:
    client = Hub(hub.endpoint, **more)
    await adding.fetch(client, await client.repository("org/tiny"), folder, lambda done, total: None)


async def test_only_words_and_safetensors_are_taken(hub: FakeHub, tmp_path: Path) -> None:
    await fetch(hub, tmp_path / "base")
    found = {path.name: path.read_bytes() for path in listed(tmp_path / "base")}
    assert set(found) == {"config.json", "tokenizer.json", "model.safetensors", "RECORD.json"}
    assert found["model.safetensors"] == WEIGHTS
    assert b"apache-2.0" in found["RECORD.json"]
    assert COMMIT.encode() in found["RECORD.json"]
    assert hashlib.sha256(WEIGHTS).hexdigest().encode() in found["RECORD.json"]


async def test_what_it_would_be_is_known_before_a_file_is_asked_for(hub: FakeHub, tmp_path: Path) -> None:
    repository = await Hub(hub.endpoint).repository("org/tiny")
    offer = adding.hub_offer(HubSource.of("hf:org/tiny"), repository, tmp_path)
    size = len(WEIGHTS) + len(FILES["config.json"]) + len(FILES["tokenizer.json"])
    assert (offer.name, offer.size, offer.download, offer.files) == ("tiny", size, size, 3)
    assert (offer.licence, offer.parameters, offer.memory) == ("apache-2.0", 1000, 4000)
    assert [path for _, path, _ in hub.asked] == ["/api/models/org/tiny/revision/main"]


async def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut = 2
    await fetch(hub, tmp_path)
    half, rest = len(WEIGHTS) // 2, len(WEIGHTS) * 3 // 4
    assert [asked for asked in hub.ranges if asked] == [f"bytes={half}-", f"bytes={rest}-"]
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS


async def test_what_an_earlier_try_left_is_used_and_what_is_whole_is_not_fetched(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(FILES["config.json"])
    mark = hashlib.sha256(WEIGHTS).hexdigest()[:12]
    (tmp_path / f"model.safetensors.{mark}.partial").write_bytes(WEIGHTS[:1000])
    await fetch(hub, tmp_path)
    assert "bytes=1000-" in hub.ranges
    assert not any(path.endswith("config.json") for _, path, _ in hub.asked)
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS


async def test_a_server_without_ranges_begins_anew(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut, hub.no_ranges = 1, True
    await fetch(hub, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
async def test_other_bytes_are_thrown_away(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.lie = name
    with pytest.raises(DigestMismatch, match=name):
        await fetch(hub, tmp_path)
    assert not [path for path in listed(tmp_path) if name in path.name]


async def test_one_that_never_moves_is_given_up(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["model.safetensors"] = b"x"  # half of it is nothing
    hub.cut = 100
    with pytest.raises(HubUnreachable, match=r"model\.safetensors"):
        await fetch(hub, tmp_path)
    assert hub.cut == 95


async def test_the_token_goes_to_the_hub_alone(hub: FakeHub, tmp_path: Path) -> None:
    hub.gated = "manual"
    await fetch(hub, tmp_path, token=TOKEN)
    assert {authorization for host, _, authorization in hub.asked if host == hub.endpoint} == {f"Bearer {TOKEN}"}
    assert {authorization for host, _, authorization in hub.asked if host == hub.store} == {""}
    assert not any(TOKEN.encode() in path.read_bytes() for path in listed(tmp_path))


@pytest.mark.parametrize(("given", "said"), [("", "it asks for a token"), (TOKEN, "has not accepted its terms")])
async def test_a_gated_base_names_the_page_to_accept(hub: FakeHub, tmp_path: Path, given: str, said: str) -> None:
    hub.gated, hub.accepted = "auto", False
    with pytest.raises(HubGated, match=said) as told:
        await fetch(hub, tmp_path, token=given)
    assert f"{hub.endpoint}/org/tiny" in (told.value.hint or "")
    assert TOKEN not in f"{told.value.message}{told.value.hint}"


@pytest.mark.parametrize(
    ("change", "ask", "said"),
    [
        ({}, ("org/other",), "there is no org/other"),
        ({"private": True}, ("org/tiny",), "or it is private"),
        ({}, ("org/tiny", "v9"), "no such revision"),
        ({"busy": True}, ("org/tiny",), "429"),
        ({"files": {"pytorch_model.bin": b""}}, ("org/tiny",), "holds no model.safetensors"),
        ({}, ("org/tiny", "main", "none.gguf"), "no GGUF file"),
        ({}, ("org/tiny", "main", "pytorch_model.bin"), "no GGUF file"),
    ],
)
async def test_refusals_are_told_in_words(hub: FakeHub, change: dict[str, Any], ask: Any, said: str) -> None:
    for name, value in change.items():
        setattr(hub, name, value)
    with pytest.raises(HubRefused, match=said):
        await Hub(hub.endpoint).repository(*ask)


@pytest.mark.parametrize("name", ["tiny", "../../etc/passwd", "org/..%2f", "org/tiny?x=1", "a/b/c"])
async def test_what_can_be_no_repository_is_not_asked_for(hub: FakeHub, name: str) -> None:
    with pytest.raises(ParamsInvalid):
        await Hub(hub.endpoint).repository(name)
    assert hub.asked == []


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(HubUnreachable, match=r"127\.0\.0\.1:9"):
        await Hub("http://127.0.0.1:9").repository("org/tiny")


async def test_one_gguf_file_of_a_repository(hub: FakeHub, tmp_path: Path) -> None:
    hub.files |= {"small.gguf": b"GGUF and so on", "large.gguf": b"GGUF"}
    source = HubSource.of("hf:org/tiny/small.gguf@main")
    client = Hub(hub.endpoint)
    repository = await client.repository(source.repository, source.revision, source.file)
    await adding.fetch(client, repository, tmp_path, lambda done, total: None)
    assert {path.name for path in listed(tmp_path)} == {"small.gguf", "RECORD.json"}
    assert source.name == "small"
    hub.files.pop("model.safetensors")
    with pytest.raises(HubRefused) as told:
        await client.repository("org/tiny")
    assert "org/tiny/large.gguf" in (told.value.hint or "")


async def test_shards_come_with_their_index(hub: FakeHub, tmp_path: Path) -> None:
    hub.files.pop("model.safetensors")
    hub.files |= {"model-00001-of-00002.safetensors": b"1", "model-00002-of-00002.safetensors": b"2"}
    with pytest.raises(OrchdError):
        await Hub(hub.endpoint).repository("org/tiny")
    hub.files["model.safetensors.index.json"] = b"{}"
    await fetch(hub, tmp_path)
    assert sum(path.suffix == ".safetensors" for path in listed(tmp_path)) == 2


def test_the_token_comes_from_a_file_the_environment_or_where_hf_puts_it(tmp_path: Path) -> None:
    (tmp_path / "huggingface").mkdir()
    kept, named = tmp_path / "huggingface" / "token", tmp_path / "named"
    kept.write_text("kept\n")
    named.write_text("named\n")
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    assert token(named, {"HF_TOKEN": "env"} | cache) == "named"
    assert token(None, {"HF_TOKEN": "env"} | cache) == "env"
    assert token(None, cache) == "kept"
    assert token(None, {"HF_HOME": str(tmp_path / "none")}) == ""
    with pytest.raises(ParamsInvalid) as told:
        token(tmp_path / "missing", {})
    assert told.value.field == "token_file"
