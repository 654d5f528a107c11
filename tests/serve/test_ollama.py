"""The Ollama target against a strict contract server, and against a real one where ORCHD_TEST_OLLAMA_HOST names it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchd.errors import (
    DeploymentUnknown,
    TargetBaseDiffers,
    TargetBaseMissing,
    TargetNameRefused,
    TargetRefused,
    TargetStreamBroken,
    TargetUnreachable,
    TargetVersionRefused,
)
from orchd.registry import Base
from orchd.registry.bases import load
from orchd.serve import ollama_base
from orchd.serve.ollama import OllamaTarget, address_of, check_name
from orchd.serve.targets import Artefact, DeployTarget
from tests.contracts.ollama_server import Model, State, serving
from tests.helpers import Lab
from tests.serve import tiny
from tests.serve.deployable import Deployable
from tests.test_deploying import House

REAL = os.environ.get("ORCHD_TEST_OLLAMA_HOST", "")


@pytest.fixture(params=["0.33.0", "0.34.1"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, State]]:
    with serving(request.param) as found:
        yield found


async def story(target: DeployTarget, deployable: Deployable) -> None:
    """What every server must be able to do."""
    artefact, golden = deployable
    deployed = await target.put("orchd-test:latest-my-assistant", artefact)
    assert deployed.name.casefold() == "orchd-test:latest-my-assistant"
    assert deployed in await target.list()
    verdict = await target.verify("orchd-test:latest-my-assistant", golden)
    assert verdict.held, verdict.detail
    await target.remove("orchd-test:latest-my-assistant")
    with pytest.raises(DeploymentUnknown):
        await target.remove("orchd-test:latest-my-assistant")


async def test_deploy_verify_remove(server: tuple[str, State], deployable: Deployable) -> None:
    address, state = server
    target = OllamaTarget(address)
    assert (await target.probe()).version == state.version
    await story(target, deployable)
    order = [one for one in state.requests if "blobs" in one or "create" in one]
    assert order == ["HEAD /api/blobs/", "POST /api/blobs/", "POST /api/create"]


@pytest.mark.skipif(not REAL, reason="ORCHD_TEST_OLLAMA_HOST names no server")
async def test_a_real_server(deployable: Deployable) -> None:
    target = OllamaTarget(REAL)
    print("Ollama", (await target.probe()).version)
    await story(target, deployable)


async def test_a_file_that_is_there_is_not_sent_again(deployable: Deployable) -> None:
    artefact, _ = deployable
    done: list[float] = []
    with serving() as (address, state):
        target = OllamaTarget(address)
        await target.put("one", artefact, lambda n, total, unit: done.append(n / total))
        await target.put("two", artefact)
        assert state.uploaded == artefact.size
        assert done[-1] == 1.0
        assert set(state.models) == {"one:latest", "two:latest"}


async def test_other_answers_are_noticed(plain: Path, deployable: Deployable) -> None:
    """The control: the plain base under the adapter's name, and a server without the template."""
    artefact, golden = deployable
    data = plain.read_bytes()  # noqa: ASYNC240 - a test
    other = Artefact(path=plain, sha256=hashlib.sha256(data).hexdigest(), size=len(data), template=artefact.template)
    untold = Artefact(path=artefact.path, sha256=artefact.sha256, size=artefact.size)
    with serving() as (address, _):
        target = OllamaTarget(address)
        for wrong, word in ((other, "proven prompt"), (untold, "chat")):
            await target.put("wrong", wrong)
            verdict = await target.verify("wrong", golden)
            assert not verdict.held
            assert word in verdict.detail


async def test_no_server_there() -> None:
    with serving() as (address, _):
        pass  # now its port is free
    with pytest.raises(TargetUnreachable, match="no Ollama server answers"):
        await OllamaTarget(address).probe()


async def test_a_stream_without_success(deployable: Deployable) -> None:
    with serving() as (address, state):
        state.drop_success = True
        with pytest.raises(TargetStreamBroken, match="writing manifest"):
            await OllamaTarget(address).put("x", deployable[0])


async def test_an_error_in_the_stream(deployable: Deployable) -> None:
    with serving() as (address, state):
        state.error_in_stream = "no space left on device"
        with pytest.raises(TargetRefused, match="no space left"):
            await OllamaTarget(address).put("x", deployable[0])


async def test_a_server_that_dies_in_the_upload(deployable: Deployable) -> None:
    with serving() as (address, state):
        state.cut_upload_at = 1 << 17
        with pytest.raises(TargetStreamBroken, match="taking the file"):
            await OllamaTarget(address).put("x", deployable[0])
        assert state.models == {}


async def test_a_file_that_changed(deployable: Deployable) -> None:
    wrong = Artefact(path=deployable[0].path, sha256="0" * 64, size=deployable[0].size)
    with serving() as (address, _), pytest.raises(TargetRefused, match="digest mismatch"):
        await OllamaTarget(address).put("x", wrong)


async def test_what_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "not.gguf"
    path.write_bytes(b"GGUF?")
    artefact = Artefact(path=path, sha256=hashlib.sha256(b"GGUF?").hexdigest(), size=5)
    with serving() as (address, _), pytest.raises(TargetRefused, match="invalid GGUF"):
        await OllamaTarget(address).put("x", artefact)


async def test_something_else_at_that_port() -> None:
    with serving() as (address, state):
        state.not_ollama = True
        with pytest.raises(TargetRefused, match="no Ollama server"):
            await OllamaTarget(address).probe()


async def test_a_model_that_is_not_there(deployable: Deployable) -> None:
    with serving() as (address, _), pytest.raises(TargetRefused, match="not found"):
        await OllamaTarget(address).verify("absent", deployable[1])


@pytest.mark.parametrize(
    "name",
    ["a/b", "", "x" * 81, "-x", "x:", "a:b:c", "x:cloud", "x:LOCAL", "x-cloud", "x:1-Cloud", "é", "x" * 200],
)
def test_names_that_ollama_takes_otherwise(name: str) -> None:
    with pytest.raises(TargetNameRefused):
        check_name(name)


def test_names_that_work() -> None:
    assert check_name("gemma:latest-my-assistant") == "gemma:latest-my-assistant"
    assert check_name("demo") == "demo:latest"
    assert check_name("cloudy.v1_2") == "cloudy.v1_2:latest"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        (' "1.2.3.4:80" ', "http://1.2.3.4:80"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        (":8080", "http://127.0.0.1:8080"),
        ("::1", "http://[::1]:11434"),
        ("[::]:1", "http://[::1]:1"),
        ("https://example.org", "https://example.org:443"),
        ("http://example.org", "http://example.org:80"),
        ("http://localhost:11434/", "http://localhost:11434"),
        ("host:99999", "http://host:11434"),
        ("host:many", "http://host:11434"),
    ],
)
def test_where_the_server_is(host: str, address: str) -> None:
    assert address_of(host) == address


# ---- onto a model that Ollama holds ---------------------------------------------------------------------------------


@pytest.fixture
def known(base: Path) -> Base:
    return load("tiny", base)


def held(state: State, path: Path, name: str = "tiny:latest") -> None:
    """A base that somebody pulled, with texts of its own."""
    said = {
        "template": "{{ .Prompt }}",
        "system": "Be brief.",
        "license": "MIT",
        "parameters": {"stop": ["<|end|>", 'a"b'], "num_ctx": 4096, "temperature": 0.7},
        "renderer": "tiny",
        "parser": "tiny",
    }
    state.models[name] = Model(path, "sha256:" + "0" * 64, said["template"], said)


async def test_what_the_base_says_is_said_again(
    server: tuple[str, State], deployable: Deployable, plain: Path, known: Base
) -> None:
    address, state = server
    artefact, golden = deployable
    held(state, plain)
    target = OllamaTarget(address)
    carried = await target.carry("tiny", known)
    await target.put("us", msgspec.structs.replace(artefact, carried=carried))
    assert state.models["us:latest"].said == state.models["tiny:latest"].said
    unasked = [msgspec.structs.replace(one, messages=()) for one in golden]
    verdict = await target.verify("us", unasked)
    assert verdict.held, verdict.detail
    assert verdict.detail.endswith("answers to the proven prompt as proven")
    assert not (await target.verify("us", golden)).held, "the control: its chats are the other template's"


async def test_a_base_that_is_not_there_is_not_pulled(known: Base) -> None:
    with serving() as (address, state):
        with pytest.raises(TargetBaseMissing, match="holds no model tiny:latest") as refused:
            await OllamaTarget(address).carry("tiny", known)
        assert "ollama pull tiny" in refused.value.hint
        assert "POST /api/show" not in state.requests


async def test_a_base_of_another_fingerprint(known: Base, plain: Path, tmp_path: Path) -> None:
    larger = load("larger", tiny.make_base(tmp_path / "larger", num_hidden_layers=2))
    other = dataclasses.replace(larger, shapes={**larger.shapes, "model.layers.2.x": (1,)})
    with serving() as (address, state):
        held(state, plain)
        with pytest.raises(TargetBaseDiffers, match="its layers is 2, not 3"):
            await OllamaTarget(address).carry("tiny", other)
        with pytest.raises(TargetBaseDiffers, match="its architecture is llama, not qwen3"):
            await OllamaTarget(address).carry("tiny", dataclasses.replace(known, architecture="Qwen3ForCausalLM"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"details": {"format": "safetensors"}}, "in the format 'safetensors'"),
        ({"remote_host": "https://ollama.com"}, "served by its cloud"),
        ({"template": 3}, "can't be read"),
    ],
)
def test_what_is_no_base(change: dict[str, Any], told: str) -> None:
    with pytest.raises(TargetBaseMissing, match=told):
        ollama_base.read("x", {"details": {"format": "gguf"}, **change})


@pytest.mark.parametrize(("version", "taken"), [("0.5.4", False), ("0.5.5", True), ("0.34.1-rc2", True), ("dev", True)])
async def test_a_server_that_is_too_old(version: str, taken: bool) -> None:
    with serving(version) as (address, _):
        if taken:
            assert (await OllamaTarget(address).probe()).version == version
        else:
            with pytest.raises(TargetVersionRefused, match=r"0\.5\.5 or newer"):
                await OllamaTarget(address).probe()


# ---- what was served before still is --------------------------------------------------------------------------------


def cut(state: State) -> None:
    state.cut_upload_at = 1 << 10
    state.uploaded = 0


def full(state: State) -> None:
    state.error_in_stream = "write blobs/sha256-x: no space left on device"


def silent(state: State) -> None:
    state.drop_success = True


def broken(state: State) -> None:
    state.load_fails = "error loading model: unknown model architecture"


def gone(state: State) -> None:
    state.not_ollama = True


@pytest.mark.parametrize("harm", [cut, full, silent, broken, gone])
async def test_whatever_happens_the_one_before_answers(
    lab: Lab, deployable: Deployable, plain: Path, tmp_path: Path, harm: Callable[[State], None]
) -> None:
    """Through the daemon's own switch, with a real file, and the answers of llama.cpp."""
    artefact, golden = deployable
    with serving() as (address, state):
        house = House(lab, tmp_path)
        target = OllamaTarget(address)
        house.targets["ollama"] = target  # type: ignore[assignment]
        served = house.of_file(artefact.path, golden, template=artefact.template)
        await house.deploying.switch(served)
        before = dict(state.models)
        harm(state)
        with pytest.raises((TargetRefused, TargetStreamBroken)):
            await house.deploying.switch(house.of_file(plain, golden))
        state.cut_upload_at, state.error_in_stream, state.drop_success = -1, "", False
        state.load_fails, state.not_ollama = "", False
        assert state.models["us:latest"] == before["us:latest"]
        assert house.node.deployments.get("us").blob == served.blob
        assert (await house.deploying.verify("us")).held
