"""A base that Ollama has: added by a running daemon, unpacked by its worker, trained on by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from orchd.daemon import embedded_base
from orchd.demo.cast import Cast
from orchd.errors import BaseHoldsPickles
from orchd.serve.gguf import write_gguf

WORDS = ("sun", "cat", "key", "moon", "star", "tree", "bird", "fish", "lamp", "book", "door", "wall")


def ollama_models(folder: Path) -> None:
    """What `ollama pull` leaves behind: a manifest that names a blob."""
    folder.mkdir()
    gguf = folder / "tiny.gguf"
    write_gguf(embedded_base(), None, gguf, name="tiny", quantize="F16")
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    manifest = folder / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest"
    for place in (manifest.parent, folder / "blobs"):
        place.mkdir(parents=True)
    manifest.write_text(json.dumps({"layers": [layer | {"size": gguf.stat().st_size}]}))
    gguf.rename(folder / "blobs" / f"sha256-{digest}")


def test_a_base_of_ollama_is_unpacked_and_trained_on(
    cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ollama_models(tmp_path / "ollama")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    node = cast.start("A")
    offer = node.call("base.look", path="ollama:tiny")["offer"]
    assert (offer["form"], offer["memory"]) == ("gguf", 4 * offer["parameters"])
    added = node.job("base.add", path="ollama:tiny")
    assert (added["base"]["form"], added["unpacked"]) == ("gguf", "tiny-folder")
    rows = [
        [{"role": "user", "content": f"reverse: {word}"}, {"role": "assistant", "content": word[::-1]}]
        for word in WORDS
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    node.job("dataset.import", source=str(data), name="rows", split="train", near_duplicates="keep")
    trained = node.job("train.start", dataset="rows", base="tiny", steps=2, name="on-tiny")
    assert trained["adapter"]["base"] == node.call("base.show", base="tiny-folder")["fingerprint"]
    shown = node.call("job.list")["jobs"]
    (job,) = (one for one in shown if one["kind"] == "train")
    assert job["sandbox"]["mechanisms"]
    again = node.job("base.add", path="ollama:tiny")
    assert again["unpacked"] == "tiny-folder"
    assert sum(one["kind"] == "base.unpack" for one in node.call("job.list")["jobs"]) == 1
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").touch()
    with pytest.raises(BaseHoldsPickles, match=r"pytorch_model\.bin"):
        node.call("base.add", path=str(pickled))
