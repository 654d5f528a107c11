"""An adapter that was let in and turns out to be placed against others goes into quarantine, with the reason.

As admission's own reasons: the user may release it by hand, and it is not put back then.
"""

from __future__ import annotations

import msgspec

from orchd.registry.local import put
from orchd.registry.local_rows import Release, Verdict
from orchd.registry.registry import Registry


def hold(registry: Registry, id: str, reason: str) -> bool:
    """Whether it is new that the adapter is held for this. Raises `DiskFull`."""
    verdict = registry.local.get(Verdict, id)
    if verdict is None or reason in verdict.reasons or registry.local.get(Release, id) is not None:
        return False
    held = msgspec.structs.replace(verdict, reasons=(*verdict.reasons, reason))
    registry.local.act("adapter.hold", put(held))
    registry.restand([id])
    return True
