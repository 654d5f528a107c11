from __future__ import annotations

import pytest

from orchd.demo.results import Results
from tests.demo.sample import good_results


@pytest.fixture
def results() -> Results:
    return good_results()
