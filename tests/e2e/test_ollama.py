"""The demo gives its average to an Ollama that answers on this machine. The server is the strict stand-in of
`tests/contracts`, which runs the model with llama.cpp; one elsewhere is never asked."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from orchd.demo.cast import Cast
from orchd.demo.examples import Examples
from orchd.demo.finale import Finale
from orchd.demo.node import Schedule
from orchd.demo.ollama import DEFAULT, loopback_address, version
from orchd.demo.players import Examiner, Peer, Plan
from orchd.demo.screen import Screen
from orchd.demo.terminal import Terminal
from tests.contracts.ollama_server import serving


def test_ollama_on_loopback_serves_the_average(cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "pairs.jsonl"
    rows = [[{"role": "user", "content": f"translate: sun {n}"}, {"role": "assistant", "content": f"zavo {n}"}]
            for n in range(30)]  # fmt: skip
    source.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    with serving() as (address, state):
        monkeypatch.setenv("OLLAMA_HOST", address)
        node = cast.start("C")
        dataset = node.import_dataset(source, name="pairs")
        sentences = tuple(node.sentences(dataset))
        peer = Peer(node=node, dataset=dataset, sentences=sentences, source=source.name)
        adapter = peer.train("one step", Schedule(steps=1, total=1, offset=0), 0, None, lambda *_: None)
        examiner = Examiner(node=node, exam=dataset, sentences=sentences)
        plan = Plan(examples=Examples(a=source, b=source, exam=source))
        finale = Finale(plan, cast, (peer, peer), examiner, Screen(Terminal(io.StringIO(), {}), quiet=True))
        told = finale.offer_to_ollama(adapter)
        assert len(told) == 1
        assert told[0].startswith(f"Ollama {state.version} on this machine served it too")
        assert "POST /api/create" in " ".join(state.requests)
        assert state.models == {}, "the demo takes away what it brought"


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert version(("127.0.0.1", 9)) is None


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("", DEFAULT),
        ("127.0.0.1:1234", ("127.0.0.1", 1234)),
        ("http://localhost:1234", ("localhost", 1234)),
        ("http://[::1]:1234", ("::1", 1234)),
        ("0.0.0.0", DEFAULT),
        ("ollama.example.org:11434", DEFAULT),
        ("192.0.2.7", DEFAULT),
        ("127.0.0.1:no", DEFAULT),
    ],
)
def test_only_loopback_is_asked(written: str, address: tuple[str, int]) -> None:
    assert loopback_address({"OLLAMA_HOST": written}) == address
