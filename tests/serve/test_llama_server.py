"""Adapters in a llama.cpp router: against the stand-in of `tests/contracts`, which computes with real llama.cpp."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchd.errors import DeploymentUnknown, NotAvailable, TargetRefused, TargetUnreachable
from orchd.importers.conversation import Message
from orchd.jobs.context import JobContext
from orchd.serve.build import run
from orchd.serve.llama_server import LlamaServerTarget, Section, presets, with_name, without_name
from orchd.serve.specs import AdapterPath, BuildResult, BuildSpec, Golden
from orchd.serve.targets import Artefact
from tests.contracts.llama_router import State, serving
from tests.serve import tiny
from tests.serve.test_build import Wire

MINE = "; kept as it is\n[mine]\nmodel = /models/mine.gguf\n"
Layered = tuple[Artefact, tuple[Golden, ...]]


def build(base: Path, adapter: Path, folder: Path) -> BuildResult:
    before = Path.cwd()
    os.chdir(folder)
    try:
        prompts = tuple((Message("user", text),) for text in ("copy: cat sun key", "the quick brown fox"))
        spec = BuildSpec(
            base=str(base),
            adapter=AdapterPath(id="adp_x", path=str(adapter)),
            name="x",
            quantize="F32",
            prompts=prompts,
            max_new_tokens=6,
            layer=True,
        )
        return run(spec, JobContext(folder, 1, Wire()))
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def layered(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Layered]:
    """Two adapters on one base, each with its proof."""
    made: list[Layered] = []
    other = tiny.make_adapter(tmp_path_factory.mktemp("other") / "adapter", seed=2)
    for one in (adapter, other):
        folder = tmp_path_factory.mktemp("layer")
        built = build(base, one, folder)
        assert built.parity.held, built.parity.detail
        assert built.layer is not None
        artefact = Artefact(
            path=folder / built.gguf, sha256=built.sha256, size=built.size, layer=folder / built.layer.gguf
        )
        made.append((artefact, built.golden))
    assert made[0][0].sha256 == made[1][0].sha256, "the base is one file, whoever is put on it"
    assert made[0][1] != made[1][1]
    return made


@pytest.fixture
def router(tmp_path: Path) -> Iterator[tuple[LlamaServerTarget, State]]:
    file = tmp_path / "presets.ini"
    with serving(file) as (address, state):
        yield LlamaServerTarget(address, file), state


async def test_two_adapters_on_one_base(router: tuple[LlamaServerTarget, State], layered: list[Layered]) -> None:
    target, state = router
    (one, golden), (two, other) = layered
    await target.probe()
    await target.put("gemma:latest-us", one)
    await target.put("them", two)
    assert len(state.models) == 1
    key = next(iter(state.models))
    assert target.asked("them") == f'"model": "{key}", "lora": [{{"id": 1, "scale": 1}}] at {target.address}/v1'
    assert target.asked("nobody") == ""
    for name, answers in (("gemma:latest-us", golden), ("them", other)):
        verdict = await target.verify(name, answers)
        assert verdict.held, verdict.detail
    assert not (await target.verify("them", golden)).held, "the control: one's answers are not the other's"
    plain = {"model": next(iter(state.models)), "prompt": golden[0].rendered, "n_predict": 6, "temperature": 0}
    said = str((await target.call("POST", "/completion", plain))["content"])
    assert said not in (golden[0].answer, other[0].answer), "a plain request gets the plain base"
    assert [found.name for found in await target.list()] == ["gemma:latest-us", "them"]
    loads = len(state.loads)
    await target.put("them", two)
    assert len(state.loads) == loads, "the same again loads nothing"
    await target.remove("gemma:latest-us")
    await target.put("them", two)
    assert (await target.verify("them", other)).held
    await target.remove("them")
    assert state.models == {}
    with pytest.raises(DeploymentUnknown):
        await target.remove("them")


async def test_what_does_not_load_leaves_the_presets(
    router: tuple[LlamaServerTarget, State], layered: list[Layered], tmp_path: Path
) -> None:
    target, state = router
    artefact, golden = layered[0]
    state.presets.write_text(MINE)
    await target.put("us", artefact)
    before = state.presets.read_text()
    assert before.startswith(MINE.strip())
    (tmp_path / "broken.gguf").write_bytes(b"GGUF?")
    broken = Artefact(path=tmp_path / "broken.gguf", sha256="ab" * 32, size=5)
    with pytest.raises(TargetRefused, match="could not load"):
        await target.put("us", broken)
    assert state.presets.read_text() == before
    assert (await target.verify("us", golden)).held
    strange = Artefact(path=tmp_path / "a:b.gguf", sha256="ab" * 32, size=5)
    with pytest.raises(TargetRefused, match="one of : , ; #"):
        await target.put("us", strange)


async def test_no_router(router: tuple[LlamaServerTarget, State]) -> None:
    target, state = router
    state.single = True
    with pytest.raises(TargetRefused, match="serves one model"):
        await target.probe()
    with pytest.raises(NotAvailable, match="presets"):
        await LlamaServerTarget(target.address, None).probe()
    with pytest.raises(TargetUnreachable):
        await LlamaServerTarget("http://127.0.0.1:9", state.presets).probe()


def test_an_adapter_keeps_its_number() -> None:
    section = Section(model="m")
    for name, path in (("a", "A"), ("b", "B"), ("c", "C"), ("plain", None)):
        section = with_name(section, name, path)
    assert section.names == {"a": 0, "b": 1, "c": 2, "plain": None}
    assert with_name(section, "again", "B").names["again"] == 1
    less = without_name(section, "a")
    assert (less.adapters, less.names["c"]) == (("B", "B", "C"), 2)
    assert with_name(less, "d", "D").adapters == ("D", "B", "C")
    assert without_name(without_name(less, "c"), "b").adapters == ()
    assert with_name(section, "a", "B").names["a"] == 1


def test_names_that_are_one() -> None:
    target = LlamaServerTarget("http://127.0.0.1:9", None)
    assert target.full_name("gemma:us") == target.full_name("Gemma.us"), "the second is refused"


def test_the_presets_file() -> None:
    text = presets(MINE, {"orchd.a": Section(model="/m", adapters=("/x", "/y"), names={"u": 0, "v": 1})})
    assert text == f"{MINE}\n[orchd.a]\nmodel = /m\nlora-scaled = /x:0.0,/y:0.0\n"
    assert presets(text, {}) == MINE
    assert presets("", {}) == "\n"
