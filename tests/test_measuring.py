"""What is signed about somebody's adapter: rounded, never surer than it was, and not of a handful of rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchd import measuring
from orchd.errors import DatasetUnusable, ParamsInvalid, TooFewToAttest
from orchd.measuring import AttestNote, attest, evaluation
from orchd.node import Node
from orchd.records import Attestation, Verified, text_id
from orchd.records.ids import ADAPTER
from orchd.registry.attested import DIFFERENCE_INTERVAL
from orchd.train.specs import Comparison, EvaluateResult, EvaluationRow
from tests.helpers import ALICE

ID = text_id(ADAPTER, b"\1" * 32)


class Network:
    def __init__(self) -> None:
        self.told: list[Verified[Attestation]] = []

    async def tell(self, record: Verified[Attestation]) -> None:
        self.told.append(record)


def node(network: Network) -> Node:
    registry = SimpleNamespace(adapter=lambda id: id)
    found = SimpleNamespace(identity=ALICE, clock=lambda: 5, network=network, registry=registry)
    return cast(Node, found)


def result(examples: int = 123, loss_interval: float | None = 0.1034, exact: float | None = 0.456) -> EvaluateResult:
    plain: dict[str, Any] = {"examples": examples, "exact_match": exact, "loss_interval": loss_interval}
    rows = (EvaluationRow(id=None, loss=2.3456, **plain), EvaluationRow(id=ID, loss=1.2345, **plain))
    beside = Comparison(
        adapter=ID, against=None, metric="loss", value=1.2345, against_value=2.3456, low=-1.3, high=-0.9111, p=0.01,
        examples=examples, verdict="better",
    )  # fmt: skip
    return EvaluateResult(rows=rows, comparisons=(beside,))


async def test_figures_are_rounded_and_intervals_never_narrowed() -> None:
    network = Network()
    shown = await attest(node(network), AttestNote(adapter=ID, metric="loss"), result())
    (told,) = network.told
    assert (told.record.value, told.record.base_value) == (1_230_000, 2_350_000)
    assert told.record.interval == 110_000
    assert told.record.extra == {DIFFERENCE_INTERVAL: 200_000}
    assert told.record.examples == 120
    assert (shown.value, shown.base_value, shown.interval, shown.examples) == (1.23, 2.35, 0.11, 120)


async def test_where_the_difference_is_not_known_it_is_taken_wide() -> None:
    network = Network()
    await attest(node(network), AttestNote(adapter=ID, metric="exact_match"), result())
    half = network.told[0].record.interval
    assert network.told[0].record.extra[DIFFERENCE_INTERVAL] >= 2 * half - 10_000


async def test_a_handful_of_rows_is_not_signed() -> None:
    network = Network()
    for few in (result(examples=9), result(loss_interval=None)):
        with pytest.raises(TooFewToAttest, match="say too little"):
            await attest(node(network), AttestNote(adapter=ID, metric="loss"), few)
    with pytest.raises(DatasetUnusable, match="asks for an answer"):
        await attest(node(network), AttestNote(adapter=ID, metric="exact_match"), result(exact=None))
    assert network.told == []


@pytest.mark.parametrize(("examples", "told"), [(10, 10), (14, 10), (99, 95), (123, 120), (1999, 1900)])
def test_numbers_of_examples_are_rounded_down(examples: int, told: int) -> None:
    assert measuring.about(examples) == told


async def test_what_is_left_out_is_not_asked_of_the_worker() -> None:
    node = cast(
        Node,
        SimpleNamespace(
            datasets=SimpleNamespace(get=lambda text: SimpleNamespace(id=text), folder=lambda id: f"/data/{id}"),
            registry=SimpleNamespace(
                known_bases=SimpleNamespace(folder=lambda text: SimpleNamespace(path=f"/{text}", fingerprint="f"))
            ),
            retention=SimpleNamespace(path=lambda fingerprint: f"/kept/{fingerprint}"),
        ),
    )
    whole = await evaluation(node, [], dataset="d", alone="demo", without=())
    assert (whole.include_base, whole.answers, whole.speed, whole.retention) == (True, True, True, "/kept/f")
    fast = await evaluation(node, [], dataset="d", without=("answers", "speed", "forgetting"))
    assert (fast.include_base, fast.answers, fast.speed, fast.retention) == (True, False, False, None)
    with pytest.raises(ParamsInvalid, match="neither an adapter nor the base"):
        await evaluation(node, [], dataset="d", without=("base",))
