"""A model that Ollama has on this disk: its GGUF file is used where it lies, and the server isn't asked.

Source: ollama `manifest/paths.go`, `types/model/name.go`: `manifests/HOST/NAMESPACE/MODEL/TAG` is an OCI manifest that
names blobs by their SHA-256, `blobs/sha256-HEX`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from orchd.errors import DigestMismatch, OllamaModelUnknown
from orchd.hub.digests import sha256_of

PLACES = ("~/.ollama/models", "/usr/share/ollama/.ollama/models", "/var/lib/ollama/models")
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MODEL, ADAPTER = "application/vnd.ollama.image.model", "application/vnd.ollama.image.adapter"
LICENCE = "application/vnd.ollama.image.license"
MANIFEST_LIMIT = 1 << 20
LICENCE_LINE = 80


class _Layer(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    digest: str
    size: int


class _Manifest(msgspec.Struct, frozen=True):
    layers: tuple[_Layer, ...] = ()


class OllamaModel(NamedTuple):
    """`blob` is a GGUF file whose bytes should have the digest `sha256` (hexadecimal)."""

    name: str
    blob: Path
    sha256: str
    size: int
    licence: str

    def verify(self) -> None:
        """Read it all. Raises `DigestMismatch`."""
        if sha256_of(self.blob) != self.sha256:
            hint = f"Ollama's own file is damaged: `ollama pull {self.name}` fetches it again."
            raise DigestMismatch(f"{self.blob} is not what its name says", hint=hint, field="path")


def find(text: str, environ: Mapping[str, str] | None = None) -> OllamaModel:
    """The model `[HOST/][NAMESPACE/]MODEL[:TAG]`. Raises `OllamaModelUnknown`."""
    parts = _parts(text)
    folders = _folders(os.environ if environ is None else environ)
    for folder in folders:
        manifest = folder.joinpath("manifests", *parts)
        if manifest.is_file():
            return _model(folder, manifest, text)
    looked = ", ".join(map(str, folders))
    raise OllamaModelUnknown(f"no model {text[:120]!r} of Ollama is here; looked in {looked}", field="path")


def _folders(environ: Mapping[str, str]) -> list[Path]:
    named = environ.get("OLLAMA_MODELS")
    return [Path(named)] if named else [Path(place).expanduser() for place in PLACES]


def _parts(text: str) -> tuple[str, str, str, str]:
    """Host, namespace, model and tag; what is left out is what Ollama takes then."""
    path, _, tag = text.rpartition(":") if ":" in text.rpartition("/")[2] else (text, "", "latest")
    words = path.split("/")
    whole = ["registry.ollama.ai", "library"][: max(0, 3 - len(words))] + words
    if len(whole) != 3 or not all(PART.fullmatch(part.replace(":", "_")) for part in (*whole, tag)):
        raise OllamaModelUnknown(f"{text[:120]!r} can be no model of Ollama", field="path")
    return whole[0], whole[1], whole[2], tag


def _model(folder: Path, manifest: Path, text: str) -> OllamaModel:
    try:
        with manifest.open("rb") as file:
            layers = msgspec.json.decode(file.read(MANIFEST_LIMIT), type=_Manifest).layers
    except (OSError, msgspec.DecodeError) as error:
        raise OllamaModelUnknown(f"{manifest} can't be read: {error}", field="path") from None
    if any(layer.media_type == ADAPTER for layer in layers):
        hint = "Add the model that it was made from; an adapter is imported with `orchctl adapter import`."
        raise OllamaModelUnknown(f"{text} is a model with an adapter on it, not a base", hint=hint, field="path")
    models = [layer for layer in layers if layer.media_type == MODEL and DIGEST.fullmatch(layer.digest)]
    if len(models) != 1:
        raise OllamaModelUnknown(f"{text} has {len(models)} files of weights here, not one", field="path")
    blob = _blob(folder, models[0].digest)
    if not blob.is_file() or blob.stat().st_size != models[0].size:
        hint = f"`ollama pull {text}` fetches the rest."
        raise OllamaModelUnknown(f"{blob} is not there, or not whole", hint=hint, field="path")
    licence = next((_first_line(_blob(folder, one.digest)) for one in layers if one.media_type == LICENCE), "unknown")
    return OllamaModel(text, blob, models[0].digest.removeprefix("sha256:"), models[0].size, licence)


def _blob(folder: Path, digest: str) -> Path:
    return folder / "blobs" / digest.replace(":", "-")


def _first_line(path: Path) -> str:
    """A licence is told by how its text begins: there is no other word for it."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = (line.strip() for line in file.read(2000).splitlines())
            return next((line[:LICENCE_LINE] for line in lines if line), "unknown")
    except OSError:
        return "unknown"
