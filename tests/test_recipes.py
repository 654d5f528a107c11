"""Averages are recomputed by themselves: at the door when their leaves are here, and when the last of these comes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio

from orchd.average.recipe import recipe_digest
from orchd.average.specs import VerifySpec
from orchd.average.worker import run_verify
from orchd.errors import OrchdError, RecipeMismatch, WorkerLost
from orchd.jobs import ErrorInfo, State
from orchd.jobs.context import JobContext
from orchd.node import Node
from orchd.recipes import WAITS, Recipes, told
from orchd.records import Leaf, Lineage, Manifest, parse_id, sign
from orchd.records.ids import ADAPTER
from orchd.registry import ADMITTED, QUARANTINED, Admission, Registry
from tests.averages import Silent, average, claim, scale_one_factor
from tests.helpers import ALICE, BOB, MALLORY, Lab, lora_tensors


class Jobs:
    """Runs the comparison here; `fails` is raised instead."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0
        self.fails: OrchdError | None = None
        self.meanwhile: Callable[[], object] = lambda: None
        self.ended: dict[str, Any] = {}

    async def submit(self, kind: str, spec: VerifySpec, *, title: str, on_result: Any) -> Any:
        assert kind == "average.verify"
        self.meanwhile()
        self.count += 1
        work = self.root / f"job-{self.count}"
        work.mkdir(parents=True)
        one = SimpleNamespace(id=work.name, state=State.DONE, result=None, error=None)
        try:
            if self.fails is not None:
                raise self.fails
            one.result = msgspec.to_builtins(await on_result(run_verify(spec, JobContext(work, 1, Silent())), work))
        except OrchdError as error:
            one.state, one.error = State.FAILED, ErrorInfo.of(error)
        self.ended[one.id] = one
        return one

    async def wait(self, id: str) -> Any:
        return self.ended[id]


class House:
    """Bob's node; Alice trains the leaves, Mallory averages them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lab = Lab(root / "bob", author=BOB)
        self.jobs = Jobs(root / "jobs")
        self.begin()
        self.leaves = [self.leaf(seed) for seed in range(3)]

    def begin(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        node = SimpleNamespace(
            registry=self.lab.registry,
            jobs=self.jobs,
            events=SimpleNamespace(emit=lambda kind, data: self.events.append((kind, data))),
        )
        self.recipes = Recipes(cast(Node, node))

    def crash(self) -> None:
        self.lab.registry.close()
        self.lab.open()
        self.begin()

    def leaf(self, seed: int) -> Manifest:
        """Made by Alice, and not here yet."""
        return self.lab.claim(self.lab.folder(f"leaf-{seed}", tensors=lora_tensors(seed=seed)), name=f"leaf-{seed}")

    def made(self, seed: int) -> Path:
        return self.lab.root / "made" / f"leaf-{seed}"

    def fetch(self, made: Manifest, folder: Path, author: Any = ALICE) -> Admission:
        signed = sign(made, author)
        return self.lab.admit_signed(signed, folder)

    def fetch_leaf(self, seed: int) -> Admission:
        return self.fetch(self.leaves[seed], self.made(seed))

    def average(self, *, seeds: tuple[int, ...] = (0, 1, 2), **spec: Any) -> tuple[Path, Lineage, dict[str, Any]]:
        leaves = {sign(self.leaves[seed], ALICE).id: self.made(seed) for seed in seeds}
        return average(leaves, self.root / f"average-{len(list(self.root.iterdir()))}", **spec)

    def offer(self, folder: Path, lineage: Lineage, extra: dict[str, Any] | None = None, **lies: Any) -> Admission:
        """As a peer gives it."""
        made = claim(self.leaves[0], folder, lineage, extra or {}, **lies)
        made = msgspec.structs.replace(made, author=MALLORY.public_key, name="average")
        return self.fetch(made, folder, MALLORY)

    @property
    def registry(self) -> Registry:
        return self.lab.registry

    def state(self, id: str) -> tuple[str, str]:
        row = self.registry.adapter(id)
        return row.state, row.reason


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def lying(lineage: Lineage, **lies: Any) -> dict[str, Any]:
    """Those lies, with the digest that belongs to them."""
    told = msgspec.structs.replace(lineage, **lies)
    digest = recipe_digest(
        [(leaf.id, leaf.weight_ppm) for leaf in told.leaves],
        method=told.method,
        rank=told.rank,
        strength_ppm=told.strength_ppm,
        dtype="F32",
    )
    return lies | {"recipe": digest}


async def test_an_honest_average_waits_until_it_was_recomputed(house: House) -> None:
    for seed in range(3):
        house.fetch_leaf(seed)
    folder, lineage, extra = house.average(method="clip")
    made = house.offer(folder, lineage, extra)
    assert house.state(made.id) == (QUARANTINED, WAITS)
    assert told(house.registry, made.row) == "not yet"
    row = await house.recipes.settled(made.id)
    assert (row.state, row.reason) == (ADMITTED, "")
    assert told(house.registry, row).startswith("it is their average: ")
    [(kind, data)] = house.events
    assert (kind, data["id"], data["holds"]) == ("adapter.recomputed", made.id, True)
    assert 0 <= data["relative_error"] <= data["tolerance"]
    await house.recipes.settled(made.id)
    assert house.jobs.count == 1, "once is enough"


def other_weights(house: House) -> Admission:
    folder, lineage, _ = house.average()
    wrong = tuple(
        Leaf(id=leaf.id, weight_ppm=ppm) for leaf, ppm in zip(lineage.leaves, (200_000, 300_000, 500_000), strict=True)
    )
    return house.offer(folder, lineage, **lying(lineage, leaves=wrong))


def one_left_out(house: House) -> Admission:
    folder, lineage, _ = house.average()
    first, second = (Leaf(id=leaf.id, weight_ppm=500_000) for leaf in lineage.leaves[:2])
    return house.offer(folder, lineage, **lying(lineage, leaves=(first, second)))


def one_put_in_that_is_not_in_it(house: House) -> Admission:
    folder, lineage, _ = house.average(seeds=(0, 1))
    ids = [leaf.id for leaf in house.average()[1].leaves]
    wrong = tuple(Leaf(id=id, weight_ppm=ppm) for id, ppm in zip(ids, (333_334, 333_333, 333_333), strict=True))
    return house.offer(folder, lineage, **lying(lineage, leaves=wrong))


def one_factor_scaled(house: House) -> Admission:
    folder, lineage, _ = house.average()
    scale_one_factor(folder, 1.5)
    return house.offer(folder, lineage)


def other_strength(house: House) -> Admission:
    folder, lineage, _ = house.average(strength=1.5)
    return house.offer(folder, lineage, **lying(lineage, strength_ppm=1_000_000))


LIES = (other_weights, one_left_out, one_put_in_that_is_not_in_it, one_factor_scaled, other_strength)


async def test_a_lying_average_is_refused_with_the_figure(house: House) -> None:
    for seed in range(3):
        house.fetch_leaf(seed)
    before = left(house)
    for lie in LIES:
        made = lie(house)
        assert house.state(made.id) == (QUARANTINED, WAITS)
        with pytest.raises(RecipeMismatch, match=r"not the average that it says: it is .* % off, at most 0.005 %"):
            await house.recipes.settled(made.id)
        assert not house.registry.has_adapter(made.id)
        assert left(house) == before, "nothing stays of it"
    assert [kind for kind, _ in house.events] == ["adapter.refused", "adapter.recomputed"] * len(LIES)
    assert house.events[0][1]["code"] == RecipeMismatch.code


def left(house: House) -> list[str]:
    """What the registry keeps, but for links to blobs."""
    return [trace for trace in house.lab.traces() if not trace.startswith("adapters/")]


async def test_leaves_that_come_later_show_the_lie(house: House) -> None:
    made = [lie(house) for lie in LIES]
    for one in made:
        assert house.state(one.id)[0] == ADMITTED, "nobody can tell yet"
        assert " of its leaves are not here: adp_" in told(house.registry, one.row)
    for seed in range(3):
        leaf = house.fetch_leaf(seed)
        await house.recipes._look(leaf.id)
    for one in made:
        state, reason = house.state(one.id)
        assert state == QUARANTINED
        assert reason.startswith("it is not the average that it says: it is ")
        assert told(house.registry, one.row).startswith("it is NOT their average: ")


async def test_leaves_that_come_later_show_the_truth_once(house: House) -> None:
    folder, lineage, extra = house.average()
    made = house.offer(folder, lineage, extra)
    for seed in range(3):
        leaf = house.fetch_leaf(seed)
        await house.recipes._look(leaf.id)
        assert house.jobs.count == (seed == 2)
    assert house.state(made.id) == (ADMITTED, "")
    house.crash()
    await house.recipes._look("")
    assert house.jobs.count == 1


async def test_a_recipe_that_contradicts_itself_does_not_come_in(house: House) -> None:
    folder, lineage, _ = house.average()
    with pytest.raises(RecipeMismatch, match="the digest of its recipe"):
        house.offer(folder, lineage, strength_ppm=2_000_000)
    assert house.lab.traces() == []


async def test_what_can_not_be_compared_waits_for_the_next_start(house: House) -> None:
    for seed in range(3):
        house.fetch_leaf(seed)
    made = one_factor_scaled(house)
    house.jobs.fails = WorkerLost("the process was killed")
    row = await house.recipes.settled(made.id)
    assert (row.state, row.reason) == (QUARANTINED, WAITS)
    house.jobs.fails = None
    house.crash()
    await house.recipes._look("")
    assert not house.registry.has_adapter(made.id)


async def test_a_crash_in_the_middle_leaves_it_waiting(house: House) -> None:
    for seed in range(3):
        house.fetch_leaf(seed)
    folder, lineage, extra = house.average()
    made = house.offer(folder, lineage, extra)
    with trio.CancelScope() as scope:
        house.jobs.meanwhile = scope.cancel
        await house.recipes.settled(made.id)
    house.jobs.meanwhile = lambda: None
    house.crash()
    assert house.state(made.id) == (QUARANTINED, WAITS)
    await house.recipes._look("")
    assert house.state(made.id) == (ADMITTED, "")


async def test_a_leaf_that_is_no_plain_lora_makes_the_recipe_impossible(house: House) -> None:
    for seed in range(2):
        house.fetch_leaf(seed)
    folder, lineage, _ = house.average(seeds=(0, 1))
    tensors = lora_tensors(seed=9, rank=2)
    odd = house.lab.folder("odd", tensors={name: 0 * values for name, values in tensors.items()})
    zero = house.fetch(house.lab.claim(odd, name="odd"), odd)
    leaves = tuple(Leaf(id=id, weight_ppm=500_000) for id in sorted((lineage.leaves[0].id, parse_id(zero.id, ADAPTER))))
    made = house.offer(folder, lineage, **lying(lineage, leaves=leaves, method="clip"))
    with pytest.raises(RecipeMismatch, match="changes nothing"):
        await house.recipes.settled(made.id)


async def test_what_the_user_let_in_stays_and_its_own_averages_are_believed(house: House) -> None:
    for seed in range(3):
        house.fetch_leaf(seed)
    made = one_factor_scaled(house)
    house.registry.release(made.id)
    await house.recipes.settled(made.id)
    assert house.state(made.id) == (ADMITTED, "")
    folder, lineage, _ = house.average()
    own = msgspec.structs.replace(claim(house.leaves[0], folder, lineage, {}), author=BOB.public_key, name="mine")
    assert house.fetch(own, folder, BOB).verdict == ADMITTED


async def test_a_newer_orchds_method_is_no_lie(house: House) -> None:
    for seed in range(3):
        house.fetch_leaf(seed)
    folder, lineage, _ = house.average()
    assert house.offer(folder, lineage, method="of-tomorrow").verdict == ADMITTED
