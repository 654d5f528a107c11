"""Under which licence an average of leaves may be passed on, and which can't be in one."""

from __future__ import annotations

import itertools

import pytest

from orchd.average.licences import NOT_SAID, Licensed, combined
from orchd.errors import LicenceUnfit


def theirs(*licences: str) -> list[Licensed]:
    return [Licensed(f"leaf{at}", licence, False) for at, licence in enumerate(licences)]


@pytest.mark.parametrize(
    ("licences", "wanted"),
    [
        (["MIT", "MIT"], "MIT"),
        (["CC0-1.0", "CC0-1.0"], "CC0-1.0"),
        (["CC0-1.0", "MIT"], "MIT"),
        (["MIT", "Apache-2.0"], "Apache-2.0 AND MIT"),
        (["MIT OR Apache-2.0", "CC0-1.0"], "MIT"),
        (["MIT OR GPL-3.0-only", "CC-BY-SA-4.0"], "CC-BY-SA-4.0"),
        (["MIT", "CC-BY-SA-4.0"], "CC-BY-SA-4.0"),
        (["CC-BY-NC-4.0", "CC-BY-NC-SA-4.0"], "CC-BY-NC-SA-4.0"),
        (["CC-BY-NC-4.0", "MIT"], "CC-BY-NC-4.0 AND MIT"),
        (["llama3", "llama3"], "llama3"),
        (["llama3", "CC0-1.0"], "llama3"),
    ],
)
def test_what_goes_together(licences: list[str], wanted: str) -> None:
    for order in itertools.permutations(licences):
        assert combined(theirs(*order)) == wanted


@pytest.mark.parametrize(
    ("licences", "named"),
    [
        (["MIT", "NOASSERTION"], "leaf1: its author has not said"),
        (["", "MIT"], "leaf0: its author has not said"),
        (["CC-BY-ND-4.0", "MIT"], "leaf0: its licence CC-BY-ND-4.0 allows no changes"),
        (["GPL-3.0-only", "CC-BY-SA-4.0"], "leaf0 is under GPL-3.0-only, leaf1 under CC-BY-SA-4.0"),
        (["CC-BY-NC-4.0", "GPL-3.0-only"], "leaf0 is under CC-BY-NC-4.0, leaf1 under GPL-3.0-only"),
        (["MIT", "llama3"], "leaf0 is under MIT, leaf1 under llama3"),
    ],
)
def test_what_does_not_is_refused_by_name(licences: list[str], named: str) -> None:
    with pytest.raises(LicenceUnfit, match=named):
        combined(theirs(*licences))


@pytest.mark.parametrize(
    ("own", "others", "wanted"),
    [
        (["NOASSERTION", "NOASSERTION"], [], NOT_SAID),
        (["MIT", "NOASSERTION"], [], "MIT"),
        (["NOASSERTION"], ["MIT"], "MIT"),
        (["Apache-2.0"], ["MIT"], "Apache-2.0 AND MIT"),
        (["GPL-3.0-only"], ["CC-BY-SA-4.0"], "CC-BY-SA-4.0"),
        (["CC-BY-ND-4.0"], ["MIT"], "MIT"),
    ],
)
def test_ones_own_never_stand_in_the_way(own: list[str], others: list[str], wanted: str) -> None:
    mine = [Licensed("mine", licence, True) for licence in own]
    assert combined([*mine, *theirs(*others)]) == wanted
