"""A base that Ollama holds: is it the adapter's, and what it says to the model beside its weights.

A model that is created from `files` inherits nothing, so template, system text, parameters, licence, renderer and
parser are read from the base (`POST /api/show`) and sent again. Pure: the answer of `show` in, values out. Source:
ollama `api/types.go` (ShowResponse), `server/routes.go` (GetModelInfo writes a parameter as `%-30s %#v`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from orchd.errors import TargetBaseDiffers, TargetBaseMissing
from orchd.registry import Base
from orchd.serve.targets import Carried

GGUF_NAMES = {
    "LlamaForCausalLM": {"llama"},
    "MistralForCausalLM": {"llama", "mistral"},
    "Qwen2ForCausalLM": {"qwen2"},
    "Qwen3ForCausalLM": {"qwen3"},
    "Gemma2ForCausalLM": {"gemma2"},
    "Gemma3ForCausalLM": {"gemma3"},
}
"""How GGUF calls an architecture of transformers; one that isn't here is not compared."""
EMBEDDING = "embed_tokens.weight"
LAYER = ".layers."


class Shown(msgspec.Struct, frozen=True):
    """What is read of the answer of /api/show."""

    template: str = ""
    system: str = ""
    license: str = ""
    parameters: str = ""
    renderer: str = ""
    parser: str = ""
    remote_host: str = ""
    details: dict[str, Any] = {}
    model_info: dict[str, Any] = {}


def read(name: str, answer: Mapping[str, Any]) -> Shown:
    """Raises TargetBaseMissing for what isn't a local GGUF model."""
    try:
        shown = msgspec.convert({key: value for key, value in answer.items() if value is not None}, Shown)
    except msgspec.ValidationError as error:
        raise TargetBaseMissing(f"what Ollama says of {name} can't be read: {error}", field="onto") from None
    form = shown.details.get("format", "")
    if shown.remote_host or form != "gguf":
        told = "is served by its cloud" if shown.remote_host else f"is in the format {str(form)[:40]!r}, not gguf"
        raise TargetBaseMissing(f"{name} {told}", field="onto")
    return shown


def carried(name: str, shown: Shown) -> Carried:
    return Carried(
        base=name,
        template=shown.template,
        system=shown.system,
        licence=shown.license,
        parameters=_parameters(shown.parameters),
        renderer=shown.renderer,
        parser=shown.parser,
    )


def check_same(name: str, shown: Shown, base: Base) -> None:
    """Raises TargetBaseDiffers where what both say of themselves shows that they are not one model: architecture,
    layers, width, vocabulary. Weights are not compared: Ollama gives none out, and its file is not used."""
    info = shown.model_info
    kind = str(info.get("general.architecture", ""))
    found = {
        "architecture": kind,
        "layers": info.get(f"{kind}.block_count"),
        "width": info.get(f"{kind}.embedding_length"),
        "vocabulary": info.get(f"{kind}.vocab_size"),
    }
    wanted = _expected(base)
    for what, known in wanted.items():
        if found[what] is not None and found[what] not in known:
            words = " or ".join(map(str, sorted(known, key=str)))
            told = f"{name} in Ollama is another model than {base.name}: its {what} is {found[what]}, not {words}"
            raise TargetBaseDiffers(told, field="onto")


def _expected(base: Base) -> dict[str, set[Any]]:
    """By what it is called in a message; what isn't known of the base is left out."""
    expected: dict[str, set[Any]] = {}
    if base.architecture in GGUF_NAMES:
        expected["architecture"] = set(GGUF_NAMES[base.architecture])
    layers = {name.partition(LAYER)[2].partition(".")[0] for name in base.shapes if LAYER in name}
    if layers:
        expected["layers"] = {len(layers)}
    for name, shape in base.shapes.items():
        if name.endswith(EMBEDDING) and len(shape) == 2:
            expected |= {"vocabulary": {shape[0]}, "width": {shape[1]}}
    return expected


def _parameters(text: str) -> dict[str, float | int | str | list[str]]:
    """One a line, name and value; a name that comes again makes a list (only `stop` does)."""
    found: dict[str, list[Any]] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        if name:
            found.setdefault(name, []).append(_value(value.strip()))
    return {
        name: [str(one) for one in values] if len(values) > 1 or name == "stop" else values[0]
        for name, values in found.items()
    }


def _value(text: str) -> Any:
    """Go's %#v of a text, a number or a truth value; what is none of these stays as it is."""
    with contextlib.suppress(ValueError):
        return json.loads(text)
    return text
