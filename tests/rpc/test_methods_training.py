"""What is refused before a job is started."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from orchd.errors import AverageSpecInvalid
from orchd.node import Node
from orchd.rpc.methods_training import AverageStart, average_start
from tests.helpers import Lab


@pytest.mark.parametrize("adapters", [[], ["alone"]])
async def test_an_average_is_of_two_or_more(lab: Lab, adapters: list[str]) -> None:
    node = cast(Node, SimpleNamespace(registry=lab.registry))
    with pytest.raises(AverageSpecInvalid, match=f"two adapters or more, not of {len(adapters)}") as refused:
        await average_start(node, AverageStart(adapters=adapters))
    assert refused.value.field == "adapters"
