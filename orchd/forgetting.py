"""What an adapter of ours forgot, as its manifest says it, and the ceiling that publishing has for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from orchd.errors import ForgetsTooMuch

if TYPE_CHECKING:
    from orchd.registry import AdapterRow

RETENTION, RETENTION_LOSS, RETENTION_KL = "retention", "retention_loss", "retention_kl"
"""The split of such figures in a manifest, and the figures."""

CEILING: Final = 0.5
"""Nats a token by which the loss on the base's own answers may rise before publishing asks again: the base's answers
are then 40 % less likely, token by token."""


class Forgot(msgspec.Struct, frozen=True, kw_only=True):
    """Nats a token on the base's retention set. `rise`: the loss with the adapter less the base's; `kl`: how far the
    next token's distribution has moved."""

    rise: float
    kl: float
    examples: int
    above: bool
    ceiling: float = CEILING


def forgot(row: AdapterRow) -> Forgot | None:
    """None where the manifest does not say: an average, or what came from elsewhere."""
    found = {one.metric: one for one in row.evaluation if one.split == RETENTION}
    loss, kl = found.get(RETENTION_LOSS), found.get(RETENTION_KL)
    if loss is None or loss.base_value is None or kl is None:
        return None
    rise = loss.value - loss.base_value
    return Forgot(rise=rise, kl=kl.value, examples=loss.examples, above=rise > CEILING)


def check(row: AdapterRow, *, demo: bool, accepted: bool) -> Forgot | None:
    """What it forgot. Raises `ForgetsTooMuch` above the ceiling, unless that was ``accepted`` by name or its base is
    the ``demo`` one, which is made to be overwritten."""
    found = forgot(row)
    if found is not None and found.above and not accepted and not demo:
        raise ForgetsTooMuch(
            f"{row.name} has unlearnt much of what its base knew: its loss on the base's own answers rose by "
            f"{found.rise:.2f} nats a token, above {CEILING:g}",
            field="adapter",
        )
    return found
