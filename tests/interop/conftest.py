"""What is not here is not tested; `make interop` fetches it, and then nothing may be missing."""

from __future__ import annotations

import os

import pytest

from tests.interop import fetch

#: Set by `make interop`: what is missing fails the tests.
MUST = "ORCHD_INTEROP"


def _need(is_here: bool, what: str, *, may_be: bool = True) -> None:
    if is_here:
        return
    if not may_be:
        pytest.skip(f"not run: there is no {what} for this kind of machine")
    if os.environ.get(MUST):
        pytest.fail(f"{what} should have been fetched")
    pytest.skip(f"not run: {what} is not here; `make interop` fetches it and runs this")


@pytest.fixture
def js() -> None:
    """Node 22 and js-libp2p."""
    _need(fetch.has_js(), "js-libp2p with Node 22")


@pytest.fixture
def p2pd() -> None:
    """The go-libp2p daemon."""
    _need(fetch.has_p2pd(), "go-libp2p's daemon p2pd", may_be=fetch.is_for_p2pd())
