"""Looking into an adapter's numbers."""

from __future__ import annotations

from orchd.node import Node, in_thread
from orchd.registry.rows import AdapterRow
from orchd.registry.scan import Scan, scan
from orchd.rpc.methods_training import AdapterNamed
from orchd.rpc.table import Result, method


class AdapterScanned(Result, frozen=True, kw_only=True):
    adapter: AdapterRow
    scan: Scan


@method(
    "adapter.scan",
    AdapterNamed,
    AdapterScanned,
    "Spectral figures of an adapter by module, beside those of known adapters of its base.",
)
async def adapter_scan(node: Node, p: AdapterNamed) -> AdapterScanned:
    row = await in_thread(node.registry.adapter, p.adapter)
    return AdapterScanned(adapter=row, scan=await in_thread(scan, node.registry, row.id))
