"""What would be added, said before anything is."""

from __future__ import annotations

import msgspec

HUB, OLLAMA = "hf:", "ollama:"
F32_BYTES, BF16_BYTES = 4, 2
WEIGHTS = ".safetensors"
GGUF = ".gguf"


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """`size` bytes in `files`, of which `download` are still to fetch. `parameters` 0: not told.

    `memory` are the bytes that its weights take in float32, where it is trained on; half of that in bfloat16. `notes`
    are what one should know of it.
    """

    source: str
    name: str
    form: str
    size: int
    files: int
    download: int = 0
    licence: str = "unknown"
    parameters: int = 0
    memory: int = 0
    notes: tuple[str, ...] = ()
