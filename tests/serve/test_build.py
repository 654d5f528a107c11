"""The proof: what is served answers as transformers + PEFT, and a file that doesn't is found out."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import orchd
from orchd.errors import JobCancelled, QuantizeRefused
from orchd.importers.conversation import Message
from orchd.jobs.context import JobContext
from orchd.serve import build, parity
from orchd.serve.build import run
from orchd.serve.gguf import write_gguf
from orchd.serve.specs import AdapterPath, BuildResult, BuildSpec
from tests.serve import tiny

DEMO_BASE = Path(orchd.__file__).parent / "train" / "base" / "demo"
TEXTS = ("copy: cat sun key", "the quick brown fox", "naïve café, 12 €", "", "a<|end|>b  c\n\n1234")
CONVERSATION = (
    Message("system", "Be short."),
    Message("user", "sun"),
    Message("assistant", "key"),
    Message("user", "cat"),
)
PROMPTS = (*((Message("user", text),) for text in TEXTS), CONVERSATION)


class Wire:
    def __init__(self) -> None:
        self.sent: list[Mapping[str, object]] = []

    def send(self, message: Mapping[str, object]) -> None:
        self.sent.append(message)

    def receive(self) -> dict[str, object] | None:
        return None


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobContext:
    workdir = tmp_path / "work"
    workdir.mkdir()
    monkeypatch.chdir(workdir)
    return JobContext(workdir, 1, Wire())


def built(job: JobContext, base: Path, adapter: Path | None, quantize: str = "F32") -> BuildResult:
    named = AdapterPath(id="adp_x", path=str(adapter)) if adapter else None
    spec = BuildSpec(base=str(base), adapter=named, name="x", quantize=quantize, prompts=PROMPTS)
    return run(spec, job)


@pytest.mark.parametrize("quantize", ["F32", "F16", "Q8_0"])
def test_an_adapter_is_served_as_it_was_trained(job: JobContext, base: Path, adapter: Path, quantize: str) -> None:
    result = built(job, base, adapter, quantize)
    assert result.parity.held, result.parity.detail
    assert result.parity.token_ids_equal == result.parity.prompts == len(PROMPTS)
    assert result.parity.positions > len(PROMPTS)
    if quantize == "F32":
        assert result.parity.greedy_equal == len(PROMPTS)
        assert result.parity.max_logprob_diff < 1e-4
    file = job.workdir / result.gguf
    assert hashlib.sha256(file.read_bytes()).hexdigest() == result.sha256
    assert file.stat().st_size == result.size
    assert [path.name for path in job.workdir.iterdir()] == [result.gguf]  # no socket, no half file
    assert [golden.messages for golden in result.golden] == list(PROMPTS)
    assert result.golden[0].rendered == "<|user|>copy: cat sun key<|end|><|assistant|>"


@pytest.mark.parametrize("quantize", ["F32", "F16", "Q8_0"])
def test_the_embedded_base(job: JobContext, quantize: str) -> None:
    """The base that orchd ships, with its own template and tokenizer, and prompts of the default proof."""
    spec = BuildSpec(base=str(DEMO_BASE), adapter=None, name="demo", quantize=quantize)
    result = run(spec, job)
    assert result.parity.held, result.parity.detail
    assert result.parity.greedy_equal == result.parity.prompts
    assert result.golden[1].answer == " cat sun key"
    assert "{{ .Content }}<|im_end|>" in result.template


@pytest.mark.parametrize(
    ("config", "ranks"),
    [
        ({"use_rslora": True}, {}),
        ({"alpha_pattern": {"q_proj": 2, "mlp.down_proj": 1.5}}, {}),
        ({"rank_pattern": {"up_proj": 2}, "use_rslora": True}, {"up_proj": 2}),
    ],
)
def test_scales_are_those_of_peft(
    job: JobContext, base: Path, tmp_path: Path, config: dict[str, Any], ranks: dict[str, int]
) -> None:
    result = built(job, base, tiny.make_adapter(tmp_path / "adapter", ranks=ranks, **config))
    assert result.parity.held, result.parity.detail


def test_a_base_with_its_own_head(job: JobContext, tmp_path: Path) -> None:
    base = tiny.make_base(tmp_path / "base", tie_word_embeddings=False)
    result = built(job, base, None)
    assert result.parity.held, result.parity.detail


def test_a_file_without_the_adapter_is_found_out(
    job: JobContext, base: Path, adapter: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the plain base passed off as the adapter."""
    monkeypatch.setattr(build, "write_gguf", lambda base, adapter, target, **more: shutil.copy(plain, target))
    result = built(job, base, adapter, "F16")
    assert not result.parity.held
    assert result.parity.token_ids_equal == len(PROMPTS)
    assert result.parity.greedy_equal < len(PROMPTS)
    assert result.parity.max_logprob_diff > 10 * result.parity.tolerance


def test_another_chat_template_is_found_out(
    job: JobContext, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(base, other)
    settings = other / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("'<|assistant|>'", "'<|system|>'"))
    monkeypatch.setattr(build, "write_gguf", lambda base, *rest, **more: write_gguf(other, *rest, **more))
    result = built(job, base, None)
    assert not result.parity.held
    assert result.parity.token_ids_equal == 0


def test_refusals_come_before_any_work(job: JobContext, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QuantizeRefused, match="256"):
        built(job, base, None, "Q4_K_M")
    job.cancel()
    with pytest.raises(JobCancelled):
        built(job, base, None)
    assert list(job.workdir.iterdir()) == []


def test_a_tie_is_no_failure() -> None:
    """Where the measure holds two tokens equally likely, either is right."""
    tied = parity._Compared(True, True, 3, True, 10, 1e-5)
    parted = tied._replace(near_tie=False)
    assert parity._verdict([tied], "Q8_0", 1.0).held
    assert not parity._verdict([parted], "Q8_0", 1.0).held
    assert not parity._verdict([], "Q8_0", 1.0).held
