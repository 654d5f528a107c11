"""One node as the demo sees it: the words of the story over the node's socket, and nothing beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchd.demo.results import Score, Verification
from orchd.errors import DaemonUnreachable, DemoFailed, NodeEnded, OrchdError
from orchd.rpc.client import Client, wait_job

#: Told of a job's way: done, total, unit.
Progress = Callable[[float, float, str], None]

#: A peer that is on the same machine and announced something is found long before this.
FIND_SECONDS = 60.0
#: From the end of a daemon's connections to the end of its process.
END_SECONDS = 2.0
#: What a training on the demo base is not left to choose.
DEMO_BASE: Mapping[str, Any] = {"learning_rate": 5e-3}


@dataclass(frozen=True, kw_only=True)
class Dataset:
    id: str
    format: str
    train: int
    heldout: int
    test: int


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One exchange of a data set: what is asked, what is right."""

    split: str
    prompt: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """`leak` is the verdict of the leak report that its author signed."""

    id: str
    author: str
    size: int
    leak: str = ""


@dataclass(frozen=True, kw_only=True)
class Averaged:
    adapter: Adapter
    recipe: str


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A part of one learning-rate schedule: `steps` of `total`, the first `offset` are behind us."""

    steps: int
    total: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class Standing:
    """An adapter as it stands at a node."""

    id: str
    name: str
    state: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Served:
    name: str
    target: str
    size: int
    parity: bool
    parity_detail: str


LICENCE = "CC0-1.0"
"""Of the adapters: nobody averages what its author has put under nothing."""


def ignore(done: float, total: float, unit: str) -> None:
    """Progress that nobody looks at."""


class Node:
    """A running daemon. Every call opens its own connection, so that threads never share one."""

    def __init__(self, name: str, home: Path, socket_path: Path, ended: threading.Event) -> None:
        self.name = name
        self.home = home
        self.socket_path = socket_path
        self._ended = ended
        status = self.call("daemon.status")
        self.author: str = status["author"]
        self.peer_id: str = status["peer_id"]
        self.address: str = next(iter(status["addresses"]), "")  # none without a network

    def call(self, method: str, /, **params: Any) -> Any:
        """The result of one method. Raises the daemon's numbered error, or `NodeEnded`."""
        try:
            with Client(self.socket_path) as client:
                return client.call(method, **params)
        except DaemonUnreachable as gone:
            raise self._lost(gone) from gone

    def job(self, method: str, /, progress: Progress = ignore, **params: Any) -> Any:
        """Start a job and return its result."""

        def report(shown: Mapping[str, Any]) -> None:
            progress(shown["done"], shown["total"], shown["unit"])

        started = self.call(method, **params)
        try:
            with Client(self.socket_path) as client:
                return wait_job(client, started["job"], report)
        except DaemonUnreachable as gone:
            raise self._lost(gone) from gone

    # ---- data and training -----------------------------------------------------------------------------------

    def import_dataset(
        self, source: Path, *, name: str, split: str = "auto", seed: int = 0, near_duplicates: str = "drop"
    ) -> Dataset:
        """What the demos learn is invented, and marked so."""
        row = self.job(
            "dataset.import",
            source=str(source),
            name=name,
            split=split,
            seed=seed,
            near_duplicates=near_duplicates,
            synthetic=True,
        )
        return Dataset(
            id=row["id"],
            format=row["format"],
            train=row["train"],
            heldout=row["validation"] + row["test"],
            test=row["test"],
        )

    def add_base(self, path: Path, name: str, progress: Progress = ignore) -> None:
        self.job("base.add", progress, path=str(path), name=name)

    def sentences(self, dataset: Dataset) -> list[Sentence]:
        """Every exchange of a data set, in its order."""
        rows = self.call("dataset.rows", dataset=dataset.id, limit=10_000)["rows"]
        return [_sentence(row) for row in rows]

    def train(
        self,
        dataset: Dataset,
        *,
        name: str,
        schedule: Schedule,
        initial: str | None = None,
        rank: int,
        seed: int,
        progress: Progress = ignore,
        settings: Mapping[str, Any] = DEMO_BASE,
    ) -> Adapter:
        optional = {} if initial is None else {"initial": initial}
        result = self.job(
            "train.start",
            progress,
            dataset=dataset.id,
            name=name,
            rank=rank,
            steps=schedule.steps,
            schedule_total=schedule.total,
            schedule_offset=schedule.offset,
            seed=seed,
            **settings,
            licence=LICENCE,
            **optional,
        )
        return _adapter(result["adapter"])

    def evaluate(self, adapters: Sequence[str], dataset: Dataset, *, base: bool = True) -> dict[str | None, Score]:
        """Scores on the test part, of the base under `None`; without what the demo doesn't show."""
        without = ["speed", "forgetting"] if base else ["speed", "forgetting", "base"]
        result = self.job(
            "adapter.evaluate", adapters=list(adapters), dataset=dataset.id, split="test", without=without
        )
        return {
            row["id"]: Score(loss=row["loss"], exact_match=row["exact_match"], examples=row["examples"])
            for row in result["rows"]
        }

    # ---- sharing ---------------------------------------------------------------------------------------------

    def join(self, topic: str) -> None:
        self.call("topic.join", topic=topic)

    def publish(self, adapter: str, topic: str) -> None:
        self.call("adapter.publish", adapter=adapter, topics=[topic])

    def find(self, adapter: str, *, announcer: str | None = None) -> None:
        """Wait until this node has heard of the adapter (in an announcement by `announcer`, a key, when given)."""

        def heard(data: Mapping[str, Any]) -> bool:
            return data["id"] == adapter and announcer in (None, data["author"])

        self.wait_event("adapter.announced", heard)

    def fetch(self, adapter: str, *, peers: Sequence[str] = (), progress: Progress = ignore) -> Adapter:
        restricted = {"peers": list(peers)} if peers else {}
        return _adapter(self.job("adapter.fetch", progress, adapter=adapter, **restricted)["adapter"])

    def find_and_fetch(self, adapter: str) -> Adapter:
        self.find(adapter)
        return self.fetch(adapter)

    def wait_event(self, kind: str, wanted: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
        """The first event of this kind that is wanted, past ones included."""
        try:
            with Client(self.socket_path) as client:
                events = client.events(after=0, kinds=(kind,), idle=FIND_SECONDS)
                return next(event["data"] for event in events if wanted(event["data"]))
        except DaemonUnreachable as gone:
            raise self._lost(gone, f"{self.name} waited {FIND_SECONDS:.0f} s for {kind} in vain") from gone

    def revoke(self, adapter: str, reason: str) -> None:
        self.call("adapter.revoke", adapter=adapter, reason=reason)

    def standing(self, adapter: str) -> Standing:
        row = self.call("adapter.show", adapter=adapter)
        return Standing(id=row["id"], name=row["name"], state=row["state"], reason=row["reason"])

    # ---- averaging and serving -------------------------------------------------------------------------------

    def average(self, adapters: Sequence[str], *, name: str, rank: int) -> Averaged:
        """Of increments of one round: the gate of one-shot averages, which asks whether each is better than the base
        on one's own half, is not for these."""
        result = self.job("average.start", adapters=list(adapters), name=name, rank=rank, method="mean", gate=False)
        return Averaged(adapter=_adapter(result["adapter"]), recipe=result["recipe"])

    def verify_average(self, adapter: str) -> Verification:
        result = self.job("average.verify", adapter=adapter)
        return Verification(
            by=self.name,
            relative_error=result["relative_error"],
            tolerance=result["tolerance"],
            holds=result["holds"],
            recipe_matches=result["recipe_matches"],
        )

    def deploy(
        self, adapter: str | None, *, name: str, target: str, dataset: Dataset | None, progress: Progress = ignore
    ) -> Served:
        """Without an adapter it is the plain base, without a data set nothing is compared."""
        given = {"adapter": adapter, "dataset": None if dataset is None else dataset.id}
        optional = {key: value for key, value in given.items() if value is not None}
        row = self.job("deploy.start", progress, name=name, target=target, **optional)
        parity = row["parity"]
        return Served(
            name=row["name"],
            target=row["target"],
            size=row["size"],
            parity=parity["held"],
            parity_detail=parity["detail"],
        )

    def ask(self, deployment: str, text: str) -> str:
        """The whole answer, chosen greedily."""
        messages = [{"role": "user", "content": text}]
        answer = self.call("chat.complete", deployment=deployment, messages=messages, max_tokens=48, temperature=0)
        return str(answer["text"]).strip()

    def _lost(self, error: DaemonUnreachable, otherwise: str = "") -> OrchdError:
        """What a broken connection means: the daemon has ended, or it only did not answer."""
        if self._ended.wait(END_SECONDS):
            return NodeEnded(f"{self.name}'s daemon ended in the middle of the story")
        return DemoFailed(otherwise or f"{self.name}: {error.message}")


def _adapter(row: Mapping[str, Any]) -> Adapter:
    leak = row["leak"]["verdict"] if row["leak"] else ""
    return Adapter(id=row["id"], author=row["author"], size=row["size"], leak=leak)


def _sentence(row: Mapping[str, Any]) -> Sentence:
    by_role = {message["role"]: message["content"] for message in row["fields"]["messages"]}
    return Sentence(split=row["split"], prompt=by_role["user"], answer=by_role["assistant"])
