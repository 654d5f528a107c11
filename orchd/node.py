"""The node: every part of the daemon in one value, and what happens when a worker has finished.

The capabilities do not know each other; they meet here.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import msgspec
import trio

from orchd import averaging, crafting, exporting, federation_notes, leaks, made_bases
from orchd.answering import Answerers
from orchd.average.specs import VerifyResult
from orchd.config import Config, Setting
from orchd.crafting import Making
from orchd.deploying import Deploying
from orchd.environment.environment import Environment
from orchd.errors import AdapterUnknown, NotAdmitted, ParamsInvalid, TopicInvalid
from orchd.identity import Identity
from orchd.jobs import EventLog, Job, Jobs, State
from orchd.jobs.jobs import Finisher
from orchd.measuring import Attested, AttestNote, attest
from orchd.net import Network
from orchd.net.policy.names import BASE
from orchd.notes import (
    AverageNote,
    AverageVerified,
    DatasetShown,
    DeploymentRow,
    ImportNote,
    LeafName,
    Trained,
    TrainNote,
    VerifyNote,
)
from orchd.paths import Paths
from orchd.recipes import Recipes, recipe_matches
from orchd.records import Manifest, parse_id
from orchd.records.ids import ADAPTER, DATASET
from orchd.registry import QUARANTINED, REMOVED, AdapterRow, DatasetRow, Registry
from orchd.registry.local_rows import Deployment, Run
from orchd.registry.own import Datasets, Deployments, Topics
from orchd.registry.registry import Admission
from orchd.registry.revocation import named
from orchd.registry.use import against_hint
from orchd.rollback import ROLLED_BACK, ROLLING_BACK, Rollbacks
from orchd.routing import Routes
from orchd.serve.embedded import EmbeddedRuntime
from orchd.serve.endpoint.server import Endpoint
from orchd.serve.targets import DeployTarget
from orchd.train import advice, runs
from orchd.train.datasets.specs import ImportResult
from orchd.train.datasets.store import DatasetInfo, keep_marks, read_info
from orchd.train.retention_store import RetentionSets
from orchd.train.runs import Runs
from orchd.train.specs import EvaluateResult, EvaluateSpec, TrainResult, TrainSpec

if TYPE_CHECKING:
    from orchd.federating import Federations

LOG = logging.getLogger("orchd.node")
P = ParamSpec("P")
T = TypeVar("T")
SALT_SIZE = 32  # bytes


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what touches the disk in a thread, so that the daemon goes on answering."""
    return await trio.to_thread.run_sync(partial(function, *args, **kwargs))


@dataclass
class Node:
    """One daemon. Everything that may block or wait is reached through `in_thread` or is async."""

    paths: Paths
    config: Config
    settings: tuple[Setting, ...]
    identity: Identity
    registry: Registry
    events: EventLog
    jobs: Jobs
    network: Network
    runtime: EmbeddedRuntime
    targets: dict[str, DeployTarget]
    clock: Callable[[], int]
    started_ms: int
    stopping: trio.Event = field(default_factory=trio.Event)
    random_bytes: Callable[[int], bytes] = os.urandom
    #: Held while this node's key is changed.
    rotating: trio.Lock = field(default_factory=trio.Lock)
    #: Put here by the daemon.
    federations: Federations = field(init=False)

    def __post_init__(self) -> None:
        self.datasets = Datasets(self.registry.local, self.paths.data / "datasets", self.clock)
        self.runs = Runs(self.paths.data / "runs")
        self.retention = RetentionSets(self.paths.data / "retention")
        self.topics = Topics(self.registry.local, self.clock)
        self.deployments = Deployments(self.registry.local)
        self.rollbacks = Rollbacks(self)
        self.deploying = Deploying(self)
        self.answerers = Answerers(self)
        self.routes = Routes(self)
        self.endpoint = Endpoint(self.answerers, self.clock)
        self.endpoint_token_file = ""
        self.recipes = Recipes(self)
        self.jobs.python = self.environment = Environment(self.paths.data / "environment", self.config.training)
        finishers: dict[str, Finisher] = {
            "dataset.import": self._imported,
            "dataset.prepare": self._imported,
            "train": self._trained,
            "evaluate": self._evaluated,
            "average": partial(averaging.finish, self),
            "average.verify": self._average_verified,
            "deploy": self.deploying.finish,
            "average.verify_round": self._average_verified,
            "average.round": partial(federation_notes.finish, self),
            "leak": partial(leaks.finish, self),
            exporting.KIND: partial(exporting.finish, self),
        }
        for kind, finish in finishers.items():
            self.jobs.finisher(kind, finish)

    def target(self, kind: str) -> DeployTarget:
        """The serving target of a kind. Raises `ParamsInvalid`."""
        try:
            return self.targets[kind]
        except KeyError:
            raise ParamsInvalid(
                f"no target {kind[:40]!r}; there is {', '.join(self.targets)}", field="target"
            ) from None

    async def join_topics(self) -> None:
        """At the start: the topics of the last time, and those of the bases that are here."""
        for name in await in_thread(self.topics.list):
            if not unicodedata.is_normalized("NFC", name):  # kept by an orchd that did not look
                LOG.warning("%r is no name for a topic and is forgotten", name)
                await in_thread(self.topics.remove, name)
                continue
            try:
                await self.network.join(name, await in_thread(self.topics.secret, name))
            except TopicInvalid as error:
                LOG.warning("%s", error)
        await self.join_base_topics()

    async def join_base_topics(self) -> None:
        """If the user wants others with the same bases to find this node."""
        if self.config.net.share_bases:
            for base in made_bases.announced(await in_thread(self.registry.bases)):
                await self.network.join(BASE + base.fingerprint)

    async def unfinished_jobs(self) -> list[Job]:
        """Jobs that wait or run."""
        found: list[Job] = []
        for state in (State.QUEUED, State.RUNNING, State.CANCELLING):
            jobs, _ = await self.jobs.list(state, limit=10_000)
            found.extend(jobs)
        return found

    def leaves(self, ids: Sequence[str]) -> list[Manifest]:
        """The manifests of adapters that must be here. Raises `AdapterUnknown` naming the first that is not."""
        return [self.registry.manifest(id).record for id in ids]

    def leaf_names(self, ids: Sequence[str]) -> tuple[LeafName, ...]:
        """Those that are here, in the order of `ids`."""
        names = self.registry.names.of(ids)
        return tuple(LeafName(id=id, name=names[id]) for id in ids if id in names)

    def tell_admitted(self, admission: Admission, job: str | None = None) -> None:
        """The event of an adapter that is new here; `job` made it."""
        data = {"id": admission.id, "origin": admission.row.origin, "state": admission.row.state}
        self.events.emit("adapter.admitted", data, job)

    async def deployment_row(self, deployment: Deployment) -> DeploymentRow:
        adapter = None
        if deployment.adapter is not None:
            try:
                adapter = await in_thread(self.registry.adapter, deployment.adapter)
            except AdapterUnknown:  # removed since; the deployment still answers
                adapter = None
        return DeploymentRow(
            name=deployment.name,
            adapter=adapter,
            target=deployment.target,
            state=deployment.state,
            base=deployment.base,
            sha256=deployment.blob,
            size=deployment.size,
            quantize=deployment.quantize,
            parity=None if deployment.parity is None else msgspec.json.decode(deployment.parity),
            created_ms=deployment.created,
            was=deployment.was,
            reason=deployment.reason,
            note=await in_thread(self._note, deployment, adapter),
            before=await in_thread(self.deploying.shown_before, deployment),
            asked=await in_thread(self.target(deployment.target).asked, deployment.name),
        )

    def _note(self, deployment: Deployment, adapter: AdapterRow | None) -> str:
        """What is to be known of a deployment that does not answer as its name lets one think; else empty."""
        index = self.registry.index
        if deployment.state == ROLLING_BACK:
            return f"falling back to the plain base: {deployment.reason}"
        if deployment.was and deployment.state == ROLLED_BACK:
            was, told = deployment.was, named(index, [deployment.was])[deployment.was]
            if against := self.registry.people.against([was]):
                return f"the plain base answers: {told} is out of use; {against[was]}"
            again = f"`orchctl deploy {was} --name {deployment.name}` puts it back"
            return f"the plain base answers: {told} was out of use when it was put here, and is no longer; {again}"
        if deployment.adapter is not None and (adapter is None or adapter.state == REMOVED):
            stays = f"it goes on answering until `orchctl deployment remove {deployment.name}`"
            return f"{named(index, [deployment.adapter])[deployment.adapter]} was removed here; {stays}"
        if adapter is not None and adapter.state == QUARANTINED:
            return f"{adapter.name} is in quarantine now, and answers as before: {adapter.reason}"
        return ""

    # ---- finishers: a worker is done, its folder is still there -------------------------------------------------

    async def _imported(self, job: Job, result: ImportResult, workdir: Path) -> DatasetShown:
        named = job.note is None or msgspec.convert(job.note, ImportNote).named
        return await in_thread(self.keep_dataset, result.info, result.warnings, workdir / result.folder, named=named)

    def keep_dataset(self, info: DatasetInfo, warnings: tuple[str, ...], folder: Path, *, named: bool) -> DatasetShown:
        """Take in the folder of a new data set. `named`: the user chose its name. Raises as `Datasets.add` does."""
        row = DatasetRow(
            id=info.id,
            name=info.name,
            kind=info.kind,
            train=info.train,
            validation=info.validation,
            test=info.test,
            skipped=info.skipped,
            warnings=warnings,
            created_ms=self.clock(),
        )
        return self.dataset_shown(self.datasets.add(row, folder, named=named))

    def dataset_shown(self, row: DatasetRow) -> DatasetShown:
        """A data set with what its folder says about it. Raises `DatasetUnusable`."""
        info = read_info(self.datasets.folder(row.id))
        return DatasetShown(
            **msgspec.structs.asdict(msgspec.structs.replace(row, kind=info.kind)),
            format=info.format,
            split=info.split,
            seed=info.seed,
            groups=info.groups,
            duplicates=info.duplicates,
            near_duplicates=info.near_duplicates,
            not_picked=info.not_picked,
            redacted=info.redacted,
            dropped=info.dropped,
            findings=info.findings,
            made_from=info.made_from,
            synthetic=info.synthetic,
            learns=info.learns,
            redacted_kinds=info.redacted_kinds,
        )

    async def _trained(self, job: Job, result: TrainResult, workdir: Path) -> Trained:
        """Admit what was trained. A daemon that died in between has it done again, and finds the adapter here."""
        note, spec = msgspec.convert(job.note, TrainNote), msgspec.convert(job.spec, TrainSpec)
        run = run_of(job)
        there = await in_thread(self.datasets.adapter_of, run)
        adapter = await in_thread(self.registry.adapter, there) if there else None
        if adapter is None and result.adapter:
            adapter = await self._admit(job, note, result, workdir)
        base = await in_thread(made_bases.keep, self, note.name, run, workdir / result.base) if result.base else None
        await in_thread(self.retention.keep_made, self.registry.base(note.base).fingerprint, result.retention)
        await in_thread(runs.finish, self.runs.folder(run))
        options = {"name": note.name, "base": note.base, "initial": note.initial or ""}
        again = advice.again(
            spec, result.diagnosis.changes, words=(note.dataset,), options=options, settled=result.settled
        )
        return Trained(
            adapter=adapter,
            scores=result.heldout,
            train_loss=result.train_loss,
            seconds=result.seconds,
            stopped=result.stopped,
            steps=result.steps,
            best_step=result.best_step,
            epochs=result.epochs,
            skipped=result.skipped,
            validation_loss=result.validation_loss,
            diagnosis=result.diagnosis,
            again=again if result.diagnosis.changes else "",
            base=base,
            residual_ppm=None if result.extracted is None else result.extracted.residual_ppm,
            leak=result.leak,
            forgetting=result.forgetting,
            doubts=result.settled.doubts,
        )

    async def _admit(self, job: Job, note: TrainNote, result: TrainResult, workdir: Path) -> AdapterRow:
        salt = self.random_bytes(SALT_SIZE)
        initial = None if note.initial is None else parse_id(note.initial, ADAPTER)
        parts = federation_notes.signed_parts(note.round, leaks.signed_parts(result.leak, result.centroid))
        result = msgspec.structs.replace(
            result, steps=result.steps + note.earlier_steps, tokens=result.tokens + note.earlier_tokens
        )
        admission = await in_thread(
            crafting.admit,
            self.registry,
            self.identity,
            self.making(note, note.description),
            workdir / result.adapter,
            origin="trained",
            training=crafting.training_record(
                result,
                initial=initial,
                dataset=parse_id(note.dataset, DATASET),
                salt=salt,
                increment=note.round is not None,
            ),
            evaluation=crafting.trained_metrics(result),
            **parts,
        )
        await in_thread(
            self.datasets.add_run, Run(adapter=admission.id, dataset=note.dataset, job=run_of(job), salt=salt)
        )
        self.tell_admitted(admission, job.id)
        return admission.row

    async def _evaluated(self, job: Job, result: EvaluateResult, workdir: Path) -> EvaluateResult | Attested:
        spec = msgspec.convert(job.spec, EvaluateSpec)
        await in_thread(self.retention.keep_made, spec.fingerprint, result.retention)
        await in_thread(keep_marks, Path(spec.dataset), spec.fingerprint, spec.split, result.marks)
        if job.note is None:
            return msgspec.structs.replace(result, retention="", marks="")
        return await attest(self, msgspec.convert(job.note, AttestNote), result)

    async def _average_verified(self, job: Job, result: VerifyResult, workdir: Path) -> AverageVerified:
        note = msgspec.convert(job.note, VerifyNote)
        manifest = await in_thread(self.registry.manifest, note.adapter)
        matches = recipe_matches(manifest.record)
        row = await in_thread(self.registry.adapter, note.adapter)
        return AverageVerified(
            adapter=row,
            recipe=row.lineage.recipe if row.lineage else "",
            recipe_matches=matches,
            relative_error=result.relative_error,
            tolerance=result.tolerance,
            holds=result.holds and matches,
            detail=result.detail if matches else "the recipe's digest is not that of its leaves and settings",
        )

    def check_usable(self, adapter: str | None) -> None:
        """Raises `NotAdmitted` for what nobody should use any more, whatever is forced."""
        if adapter is not None and (against := self.registry.people.against([adapter])):
            told, hint = named(self.registry.index, [adapter])[adapter], against_hint(self.registry, adapter)
            raise NotAdmitted(f"{told} may not be used: {against[adapter]}", hint=hint, field="adapter")

    def making(self, note: TrainNote | AverageNote, description: str) -> Making:
        """What an adapter that a job made says of itself."""
        return Making(
            name=note.name,
            description=description,
            base=self.registry.base(note.base),
            created_ms=self.clock(),
            licence=note.licence,
            tags=note.tags,
            supersedes=None if note.supersedes is None else parse_id(note.supersedes, ADAPTER),
        )


def run_of(job: Job) -> str:
    """The run that a training belongs to: it is called after the job that began it."""
    return Path(job.spec["run"]).name if isinstance(job.spec, dict) and job.spec.get("run") else job.id
