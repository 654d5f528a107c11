"""The hostile fourth peer's deed: it changes bytes of somebody else's adapter on its own disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from orchd.errors import DemoFailed

#: Enough to change what the adapter says, too few to change its size.
BYTES_CHANGED = 64


def tamper(home: Path, size: int) -> int:
    """Flip bytes in the middle of the largest blob below `home`, an adapter's weights. Returns how many.

    The file stays a valid safetensors file of the same length (its header lies at the front): only the digest that the
    author signed can tell.
    """
    blobs = [path for path in (home / "data" / "blobs").rglob("*") if path.is_file()]
    weights = max(blobs, key=lambda path: path.stat().st_size, default=None)
    if weights is None or not 0 < weights.stat().st_size <= size:
        raise DemoFailed(f"no weights of at most {size} bytes lie below {home}")
    weights.chmod(weights.stat().st_mode | stat.S_IWUSR)
    with weights.open("r+b") as file:
        middle = weights.stat().st_size // 2
        file.seek(middle)
        original = file.read(BYTES_CHANGED)
        file.seek(middle)
        file.write(bytes(byte ^ 0xFF for byte in original))
        file.flush()
        os.fsync(file.fileno())
    return len(original)
