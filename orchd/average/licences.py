"""Under which licence an average may be passed on: what those of its leaves have in common. No numpy here.

Licences are SPDX names. An average is a work made from its leaves: licences that only ask to be named add up, one that
asks for itself ("share alike") decides, two of these can't both have it, and what forbids changes forbids averaging.
Nobody's legal advice: what is not in these lists goes with itself only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from orchd.errors import LicenceUnfit

UNSTATED: Final = frozenset({"", "NOASSERTION", "NONE", "unknown"})
NOT_SAID: Final = "NOASSERTION"
FREE: Final = frozenset({"CC0-1.0", "Unlicense", "0BSD", "MIT-0", "PDDL-1.0", "WTFPL"})
"""Ask for nothing."""
NAMED: Final = frozenset(
    {"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "BSL-1.0", "CC-BY-3.0", "CC-BY-4.0"}
    | {"BlueOak-1.0.0", "ODC-By-1.0", "CC-BY-NC-4.0", "CC-BY-NC-3.0"}
)
"""Ask to be named, or for no commercial use: they add up."""
NOT_COMMERCIAL: Final = frozenset({"CC-BY-NC-4.0", "CC-BY-NC-3.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-SA-3.0"})
_GNU: Final = ("GPL-2.0", "GPL-3.0", "AGPL-3.0", "LGPL-2.1", "LGPL-3.0")
ALIKE: Final = frozenset(
    {"CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0", "ODbL-1.0", "MPL-2.0", "EUPL-1.2"}
    | {f"{name}-{form}" for name in _GNU for form in ("only", "or-later")}
)
"""Ask that what is made from them is under the same."""


class Licensed(NamedTuple):
    """An adapter: how it is called, under which licence it came, and whether it is one's own."""

    called: str
    licence: str
    own: bool


def combined(adapters: Sequence[Licensed]) -> str:
    """The licence of their average; `NOT_SAID` where all are one's own and none says.

    One's own adapters may be put under anything by whoever averages them: theirs never stand against another's. Raises
    `LicenceUnfit` naming the adapter that can't be in it, or the two that can't be in it together.
    """
    others = [one for one in adapters if not one.own]
    for one in others:
        check(one)
    found = _together([(one, one.licence) for one in others])
    mine = sorted({one.licence for one in adapters if one.own} - UNSTATED)
    for licence in mine:
        own = Licensed("yours", licence, True)
        try:
            found = _together([*((one, one.licence) for one in others), (own, licence)])
        except LicenceUnfit:
            continue
    if not others:
        return mine[0] if len(mine) == 1 else NOT_SAID
    return found


def check(one: Licensed) -> None:
    """Raises `LicenceUnfit` for one of somebody else that says nothing, or that may not be changed."""
    if one.own:
        return
    if one.licence in UNSTATED:
        raise LicenceUnfit(f"{one.called}: its author has not said under which licence it is", field="adapters")
    if "-ND-" in one.licence:
        raise LicenceUnfit(f"{one.called}: its licence {one.licence} allows no changes", field="adapters")


def _together(stated: Sequence[tuple[Licensed, str]]) -> str:
    asked: dict[str, Licensed] = {}
    for one, expression in stated:
        for licence in _parts(expression):
            if licence not in FREE:
                asked.setdefault(licence, one)
    decisive = [licence for licence in asked if licence not in NAMED]
    if len(decisive) > 1:
        raise _clash(asked, decisive[0], decisive[1])
    if not decisive:
        return " AND ".join(sorted(asked)) or min((expression for _, expression in stated), default=NOT_SAID)
    (whole,) = decisive
    for licence in asked:
        commercial = licence in NOT_COMMERCIAL and whole not in NOT_COMMERCIAL
        if licence != whole and (whole not in ALIKE or commercial):
            raise _clash(asked, licence, whole)
    return whole


def _clash(asked: dict[str, Licensed], one: str, other: str) -> LicenceUnfit:
    told = f"{asked[one].called} is under {one}, {asked[other].called} under {other}: not both in one average"
    return LicenceUnfit(told, field="adapters")


def _parts(expression: str) -> list[str]:
    """What an SPDX expression asks for: of `A OR B` the one that asks for less, of `A AND B` both."""
    choices = [choice.strip(" ()") for choice in expression.split(" OR ")]
    parts = [[part.strip(" ()") for part in choice.split(" AND ")] for choice in choices]

    def demands(licences: list[str]) -> tuple[int, int]:
        return sum(one not in FREE | NAMED for one in licences), sum(one not in FREE for one in licences)

    return min(parts, key=demands)
