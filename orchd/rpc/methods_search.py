"""Finding adapters, and asking what they are: search, versions, differences, lineage."""

from __future__ import annotations

from functools import partial

import trio

from orchd.node import Node, in_thread
from orchd.registry import AdapterRow, compare, lineage, search, versions
from orchd.registry.index import Cancel
from orchd.rpc.methods_training import AdapterNamed
from orchd.rpc.table import Params, Result, method


@method("adapter.search", search.Query, search.Found, "Adapters that are here, by what they are; a page at a time.")
async def adapter_search(node: Node, p: search.Query) -> search.Found:
    cancel = Cancel()
    try:
        find = partial(search.search, node.registry, p, cancel)
        return await trio.to_thread.run_sync(find, abandon_on_cancel=True)  # type: ignore[call-arg]
    except trio.Cancelled:  # nobody waits for it any more
        cancel.cancel()
        raise


@method("adapter.why", AdapterNamed, lineage.Why, "Where an adapter came from, with weights, and what it went into.")
async def adapter_why(node: Node, p: AdapterNamed) -> lineage.Why:
    return await in_thread(lineage.why, node.registry, p.adapter)


class Versions(Result, frozen=True, kw_only=True):
    """Newest first. `newest` is the one that NAME@author means: the newest that is admitted."""

    versions: list[AdapterRow]
    newest: str | None


@method("adapter.versions", AdapterNamed, Versions, "All versions of an adapter by its author that are here.")
async def adapter_versions(node: Node, p: AdapterNamed) -> Versions:
    return await in_thread(_versions, node, p.adapter)


def _versions(node: Node, text: str) -> Versions:
    registry = node.registry
    found = versions.versions(registry.index, registry.people.view(), registry.resolve(text))
    newest = versions.newest(found)
    return Versions(versions=registry.rows_of([one.id for one in found]), newest=newest.id if newest else None)


class AdapterPair(Params, frozen=True, kw_only=True):
    adapter: str
    other: str


@method("adapter.diff", AdapterPair, compare.Compared, "What two adapters do not have in common.")
async def adapter_diff(node: Node, p: AdapterPair) -> compare.Compared:
    return await in_thread(compare.compare, node.registry, p.adapter, p.other)
