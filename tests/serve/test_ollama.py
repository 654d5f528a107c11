"""The Ollama target against a strict contract server, and against a real one where ORCHD_TEST_OLLAMA_HOST names it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchd.errors import (
    DeploymentUnknown,
    TargetNameRefused,
    TargetRefused,
    TargetStreamBroken,
    TargetUnreachable,
)
from orchd.importers.conversation import Message
from orchd.jobs.context import JobContext
from orchd.serve.build import run
from orchd.serve.ollama import OllamaTarget, address_of, check_name
from orchd.serve.specs import AdapterPath, BuildSpec, Golden
from orchd.serve.targets import Artefact, DeployTarget
from tests.contracts.ollama_server import State, serving
from tests.serve.test_build import Wire

REAL = os.environ.get("ORCHD_TEST_OLLAMA_HOST", "")
Deployable = tuple[Artefact, tuple[Golden, ...]]


@pytest.fixture(scope="module")
def deployable(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Deployable:
    """A proven GGUF with its golden answers."""
    workdir = tmp_path_factory.mktemp("work")
    before = Path.cwd()
    os.chdir(workdir)
    try:
        prompts = tuple((Message("user", text),) for text in ("copy: cat sun key", "the quick brown fox"))
        named = AdapterPath(id="adp_x", path=str(adapter))
        spec = BuildSpec(base=str(base), adapter=named, name="x", quantize="F32", prompts=prompts, max_new_tokens=6)
        built = run(spec, JobContext(workdir, 1, Wire()))
    finally:
        os.chdir(before)
    assert built.parity.held, built.parity.detail
    path = workdir / built.gguf
    return Artefact(path=path, sha256=built.sha256, size=built.size, template=built.template), built.golden


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
