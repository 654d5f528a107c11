"""The base models that adapters are for."""

from __future__ import annotations

from orchd.node import Node, in_thread
from orchd.registry import Base
from orchd.registry.exchange import judge_again
from orchd.registry.known_bases import Absent, Part
from orchd.rpc.table import NoParams, Params, Result, method


class BaseRow(Result, frozen=True, kw_only=True):
    """`size` is in bytes. `form` is folder (Hugging Face) or gguf.

    The fingerprint looks at `sampled` numbers (bytes, of a GGUF file) of all weights; what lies outside this sample is
    not compared. `linked` are other fingerprints of the same base. A `private` one was made here, by a training of
    whole weights, and is never announced.
    """

    name: str
    fingerprint: str
    architecture: str
    parameters: int
    size: int
    licence: str
    path: str
    form: str
    sampled: int
    linked: tuple[str, ...]
    private: bool = False


class Bases(Result, frozen=True, kw_only=True):
    """`absent`: were added, and can't be used now."""

    bases: list[BaseRow]
    absent: list[Absent]


class BaseNamed(Params, frozen=True, kw_only=True):
    base: str


@method("base.list", NoParams, Bases, "The base models that this node has.")
async def base_list(node: Node, _: NoParams) -> Bases:
    return await in_thread(_list, node)


def _list(node: Node) -> Bases:
    known = node.registry.known_bases
    return Bases(bases=[base_row(node, base) for base in known.all()], absent=known.absent())


@method("base.show", BaseNamed, BaseRow, "One base, by name or fingerprint.")
async def base_show(node: Node, p: BaseNamed) -> BaseRow:
    return await in_thread(lambda: base_row(node, node.registry.base(p.base)))


def base_row(node: Node, base: Base) -> BaseRow:
    same = node.registry.known_bases.same(base.fingerprint)
    return BaseRow(
        name=base.name,
        fingerprint=base.fingerprint,
        architecture=base.architecture,
        parameters=base.parameters,
        size=base.size,
        licence=base.licence,
        path=str(base.path),
        form=base.form,
        sampled=base.sampled,
        linked=tuple(sorted(same - {base.fingerprint})),
        private=base.private,
    )


class BaseRemoved(Result, frozen=True, kw_only=True):
    base: str


@method("base.remove", BaseNamed, BaseRemoved, "Forget a base that was added; its files stay.")
async def base_remove(node: Node, p: BaseNamed) -> BaseRemoved:
    await in_thread(node.registry.known_bases.remove, p.base)
    return BaseRemoved(base=p.base)


class BaseVerified(Result, frozen=True, kw_only=True):
    """`checks` are the parts of the fingerprint; `sampled`, `size` and `form` as for base.show (0 when unreadable)."""

    name: str
    fingerprint: str
    form: str
    size: int
    ok: bool
    checks: list[Part]
    sampled: int
    parameters: int


@method("base.verify", BaseNamed, BaseVerified, "Read a base's files again, and say what is not as it was.")
async def base_verify(node: Node, p: BaseNamed) -> BaseVerified:
    base, parts = await in_thread(node.registry.known_bases.verify, p.base)
    return BaseVerified(
        name=base.name,
        fingerprint=base.fingerprint,
        form=base.form if isinstance(base, Base) else "",
        size=base.size if isinstance(base, Base) else 0,
        ok=all(part.ok for part in parts),
        checks=parts,
        sampled=base.sampled if isinstance(base, Base) else 0,
        parameters=base.parameters if isinstance(base, Base) else 0,
    )


class BaseLinkParams(Params, frozen=True, kw_only=True):
    """Names of bases that are here, or fingerprints."""

    base: str
    other: str


class BaseLinked(Result, frozen=True, kw_only=True):
    """`same` are all fingerprints that are one base now; `admitted` as for base.add."""

    same: list[str]
    admitted: list[str]


@method(
    "base.link", BaseLinkParams, BaseLinked, "Say that two fingerprints are one base, such as a folder and its GGUF."
)
async def base_link(node: Node, p: BaseLinkParams) -> BaseLinked:
    def link() -> BaseLinked:
        row = node.registry.known_bases.link(p.base, p.other)
        same = node.registry.known_bases.same(row.fingerprint)
        return BaseLinked(same=sorted(same), admitted=judge_again(node.registry, row.fingerprint))

    return await in_thread(link)
