"""Adapters in a vLLM server: against the strict stand-in of `tests/contracts`, or the one at ORCHD_TEST_VLLM_HOST."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchd.errors import DeploymentUnknown, TargetNameRefused, TargetRefused, TargetUnreachable
from orchd.serve.targets import Artefact
from orchd.serve.vllm import VllmTarget
from tests.contracts.vllm_server import State, serving
from tests.serve import tiny
from tests.serve.deployable import Deployable


@pytest.fixture
def server(deployable: Deployable, adapter: Path) -> Iterator[tuple[str, State]]:
    artefact, _ = deployable
    with serving({adapter.resolve(): artefact.path}, artefact.template) as found:
        yield found


def of(deployable: Deployable, adapter: Path | None) -> Artefact:
    artefact, _ = deployable
    return Artefact(path=artefact.path, sha256=artefact.sha256, size=artefact.size, adapter=adapter)


async def test_load_ask_replace_unload(server: tuple[str, State], deployable: Deployable, adapter: Path) -> None:
    address, state = server
    target = VllmTarget(address)
    assert (await target.probe()).version == "0.15.0"
    for _ in range(2):  # the second time in place
        await target.put("us", of(deployable, adapter))
    assert [one.name for one in await target.list()] == ["us"]
    verdict = await target.verify("us", deployable[1])
    assert verdict.held, verdict.detail
    await target.remove("us")
    assert state.loaded == {}
    with pytest.raises(DeploymentUnknown):
        await target.remove("us")


async def test_other_answers_are_noticed(
    server: tuple[str, State], deployable: Deployable, adapter: Path, plain: Path
) -> None:
    """The control: the server answers with the plain base."""
    address, state = server
    state.models = dict.fromkeys(state.models, plain)
    target = VllmTarget(address)
    await target.put("us", of(deployable, adapter))
    verdict = await target.verify("us", deployable[1])
    assert not verdict.held
    assert "proven prompt" in verdict.detail


async def test_what_vllm_refuses_is_told_in_its_words(
    server: tuple[str, State], deployable: Deployable, adapter: Path, tmp_path: Path
) -> None:
    address, state = server
    target = VllmTarget(address)
    with pytest.raises(TargetRefused, match="No adapter found"):
        await target.put("us", of(deployable, tmp_path / "nowhere"))
    wide = tiny.make_adapter(tmp_path / "wide", rank=32)
    with pytest.raises(TargetRefused, match="greater than max_lora_rank"):
        await target.put("us", of(deployable, wide))
    with pytest.raises(TargetRefused, match="plain base already"):
        await target.put("us", of(deployable, None))
    state.updating = False
    with pytest.raises(TargetRefused, match="404: Not Found"):
        await target.put("us", of(deployable, adapter))
    assert state.loaded == {}


async def test_nobody_there(server: tuple[str, State]) -> None:
    with pytest.raises(TargetUnreachable, match="no vLLM server answers"):
        await VllmTarget("http://127.0.0.1:9").probe()


def test_names() -> None:
    target = VllmTarget("http://127.0.0.1:9")
    target.check_name("gemma:latest-us")
    for name in ("a/b", "../us"):
        with pytest.raises(TargetNameRefused):
            target.check_name(name)
