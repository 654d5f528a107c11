"""Where an adapter can be deployed to. One interface, one file a target; the daemon imports this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from orchd.serve.specs import Golden

TRIMMED = " \t\n\ufffd"

Progress = Callable[[float, float, str], None]
"""Called with (done, total, unit)."""


def no_progress(done: float, total: float, unit: str) -> None:
    """For callers that show none."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """A target that answered: where it is and which version of which server it runs."""

    kind: str
    address: str
    version: str


class Carried(msgspec.Struct, frozen=True, kw_only=True):
    """What a model that a server holds already (`base`) says beside its weights, to be said again of what is made."""

    base: str
    template: str = ""
    system: str = ""
    licence: str = ""
    parameters: dict[str, float | int | str | list[str]] = {}
    renderer: str = ""
    parser: str = ""


class Artefact(msgspec.Struct, frozen=True, kw_only=True):
    """A complete GGUF to deploy. `sha256` in hexadecimal, `size` in bytes.

    `adapter` is the PEFT folder that it was made with, for servers that take those; None of the plain base. With
    `layer`, a GGUF LoRA, the GGUF is the plain base, and both together are what was proven.

    `template` is the chat template as a Go template, for servers that don't read the one in the file; empty when
    the base's template can't be said in that language. `carried` goes before it.
    """

    path: Path
    sha256: str
    size: int
    template: str = ""
    adapter: Path | None = None
    layer: Path | None = None
    carried: Carried | None = None


class Deployed(msgspec.Struct, frozen=True, kw_only=True):
    """What a target holds under a name. `digest` is the target's own, empty where it has none."""

    name: str
    digest: str
    size: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """How a target's answers compare with the proven ones."""

    held: bool
    compared: int
    equal: int
    detail: str


class DeployTarget(Protocol):
    """A place where people run models. Every method raises numbered errors only (70xx)."""

    @property
    def kind(self) -> str: ...

    @property
    def stages(self) -> bool:
        """Whether something can be tried there under another name first."""

    def check_name(self, name: str) -> None:
        """Raises TargetNameRefused for what can't be a model's name there."""

    def full_name(self, name: str) -> str:
        """What two names have in common that stand for the same there. Raises nothing."""

    def asked(self, name: str) -> str:
        """How people ask what stands under that name, in words. Raises nothing; may touch the disk."""

    async def probe(self) -> Capabilities:
        """Is it there? Raises TargetUnreachable."""

    async def put(self, name: str, artefact: Artefact, progress: Progress = no_progress) -> Deployed:
        """Make `name` answer with `artefact`. The same again changes nothing; a failure leaves what was before."""

    async def verify(self, name: str, golden: Sequence[Golden]) -> Verdict:
        """Ask `name` for the proven answers."""

    async def list(self) -> tuple[Deployed, ...]:
        """Everything the target holds, whoever put it there."""

    async def remove(self, name: str) -> None:
        """Raises DeploymentUnknown."""


def verdict(answers: Sequence[tuple[str, str]], what: str) -> Verdict:
    """Compare (wanted, found) answers. Blanks at the ends don't count, as servers trim them, nor does the half of a
    character that was cut at the end."""
    differing = [(a, b) for a, b in answers if a.strip(TRIMMED) != b.strip(TRIMMED)]
    equal = len(answers) - len(differing)
    detail = f"{equal} of {len(answers)} {what} as proven"
    if differing:
        wanted, found = differing[0]
        detail += f"; proven {wanted[:60]!r}, got {found[:60]!r}"
    held = bool(answers) and not differing
    return Verdict(held=held, compared=len(answers), equal=equal, detail=detail)
