"""Quantities as people read them."""

from __future__ import annotations


def size(count: float | None) -> str:
    """Bytes: 987 B, 1.5 MB; nothing for None."""
    if count is None:
        return ""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.95:  # what is written as 1000.0 is the next unit's 1.0
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"
