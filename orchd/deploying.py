"""How a name comes to be answered by something else: built, asked for its proven answers beside what is served, then
put in its place. Until that last step, and whenever anything before it fails, what was served before still is.

One switch of a name at a time. What was there before is kept with its file, one generation, so that `roll_back` brings
it back in one step; a rollback can be rolled back too.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from orchd.errors import (
    AnswerDiffers,
    DeploymentUnknown,
    NothingBefore,
    OrchdError,
    ParityFailed,
    TargetNameTaken,
)
from orchd.jobs import Job
from orchd.jobs.entry import LocalContext
from orchd.notes import Before, DeploymentRow, DeployNote
from orchd.registry.local_rows import Deployment
from orchd.rollback import READY, ROLLED_BACK, ROLLING_BACK
from orchd.serve.specs import BuildResult, Golden
from orchd.serve.targets import Artefact, Carried, Deployed, DeployTarget, Progress, Verdict, no_progress

if TYPE_CHECKING:
    from orchd.node import Node

LOG = logging.getLogger(__name__)
ASKED = 2
"""Proven answers that are asked before a switch; `verify` asks them all."""
STAGING = "orchd-trying-"
"""Begins the name under which something is tried before it is switched to."""
TIDY_SECONDS = 10.0
"""To take a tried one away again, also when the job was cancelled."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What a deployment has to be put there again, and asked again. `held` is the digest that the target gave it,
    `layer` the SHA-256 (hexadecimal) of its GGUF LoRA where it has one."""

    golden: tuple[Golden, ...] = ()
    template: str = ""
    held: str = ""
    carried: Carried | None = None
    layer: str = ""


class Deploying:
    """Switches the names of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._switching: dict[str, trio.Lock] = {}
        #: Files that are about to be deployed; a file may be there more than once.
        self._coming: list[str] = []
        #: Held from the look at what is under way to the job that is then.
        self.starting = trio.Lock()

    # ---- what is asked before anything is built -----------------------------------------------------------------

    async def check_free(self, name: str, target: DeployTarget, *, replace: bool) -> bool:
        """Whether the target holds `name` now. Raises `TargetNameTaken` for what orchd did not put there, unless
        `replace`; and what the target raises, if it isn't there."""
        await target.probe()
        full = target.full_name(name)
        held = next((one for one in await target.list() if target.full_name(one.name) == full), None)
        own = [
            row
            for row in await trio.to_thread.run_sync(self._node.deployments.list)
            if row.target == target.kind and target.full_name(row.name) == full
        ]
        if own and own[0].name != name:
            hint = f"Deploy it as {own[0].name!r}, or give it another name."
            raise TargetNameTaken(
                f"{name!r} and the deployment {own[0].name!r} are one name in {target.kind}", hint=hint, field="name"
            )
        if held is None or replace:
            return held is not None
        if not own:
            raise TargetNameTaken(f"{held.name!r} in {target.kind} was not made by orchd", field="name")
        put = made_of(own[0]).held
        if put and held.digest and put != held.digest:
            raise TargetNameTaken(f"somebody else has changed {held.name!r} in {target.kind}", field="name")
        return True

    # ---- a build has ended --------------------------------------------------------------------------------------

    async def finish(self, job: Job, result: BuildResult, workdir: Path) -> DeploymentRow:
        """The finisher of the `deploy` job."""
        node = self._node
        note = msgspec.convert(job.note, DeployNote)
        if not result.parity.held and not note.force:
            raise ParityFailed(f"{note.name} would answer differently from what was trained: {result.parity.detail}")
        await trio.to_thread.run_sync(node.check_usable, note.adapter)
        files = [(result.gguf, result.sha256)]
        if result.layer is not None:
            files.append((result.layer.gguf, result.layer.sha256))
        self._coming += [digest for _, digest in files]
        try:
            for name, digest in files:
                await trio.to_thread.run_sync(node.registry.blobs.put_file, workdir / name, bytes.fromhex(digest))
            await self._take_in(job, note, result)
        finally:
            with trio.CancelScope(shield=True):
                for _, digest in files:
                    self._coming.remove(digest)
                    await trio.to_thread.run_sync(self.drop_blob, digest)  # unless it is deployed now
        node.rollbacks.wake()  # it may have been revoked while it was built
        return await node.deployment_row(await trio.to_thread.run_sync(node.deployments.get, note.name))

    async def _take_in(self, job: Job, note: DeployNote, result: BuildResult) -> None:
        node = self._node
        deployment = Deployment(
            name=note.name,
            adapter=note.adapter,
            target=note.target,
            state=ROLLED_BACK if note.was else READY,
            base=note.base,
            blob=result.sha256,
            size=result.size,
            quantize=result.quantize,
            parity=msgspec.json.encode(result.parity).decode(),
            created=node.clock(),
            was=note.was,
            reason=note.reason,
            made=_text(_made(note, result)),
        )

        async def work(context: LocalContext) -> None:
            await self.switch(deployment, force=note.force, job=job.id, progress=context.progress)

        await node.jobs.told(job.id, work)

    # ---- the switch ---------------------------------------------------------------------------------------------

    async def switch(
        self, new: Deployment, *, force: bool = False, job: str | None = None, progress: Progress = no_progress
    ) -> None:
        """`new` answers under its name from now on, or nothing has changed. Its file is in the store.

        Raises `AnswerDiffers` where the target does not give the proven answers, unless `force`.
        """
        async with self._switching.setdefault(new.name, trio.Lock()):
            node = self._node
            target = node.target(new.target)
            before = await trio.to_thread.run_sync(self._before, new.name)
            held = await self._put(target, new, before, force=force, progress=progress)
            new = msgspec.structs.replace(new, made=_text(msgspec.structs.replace(made_of(new), held=held.digest)))
            with trio.CancelScope(shield=True):  # it answers already
                await self._keep(new, before, job)

    async def _put(
        self, target: DeployTarget, new: Deployment, before: Deployment | None, *, force: bool, progress: Progress
    ) -> Deployed:
        artefact, golden = self.artefact(new), made_of(new).golden[:ASKED]
        if target.stages and golden:
            return await self._put_tried(target, new, artefact, golden, force=force, progress=progress)
        held = await target.put(new.name, artefact, progress)
        verdict = await target.verify(new.name, golden) if golden else None
        if verdict is not None and not verdict.held and not force:
            with trio.CancelScope(shield=True):
                await self._put_back(target, new.name, before)
            raise AnswerDiffers(f"{new.name} in {new.target}: {verdict.detail}")
        return held

    async def _put_tried(
        self,
        target: DeployTarget,
        new: Deployment,
        artefact: Artefact,
        golden: Sequence[Golden],
        *,
        force: bool,
        progress: Progress,
    ) -> Deployed:
        """First under a name of its own, which is gone afterwards."""
        await self._tidy(target, STAGING)
        name = STAGING + secrets.token_hex(4)
        try:
            await target.put(name, artefact, progress)
            verdict = await target.verify(name, golden)
            if not verdict.held and not force:
                raise AnswerDiffers(f"{new.name} in {new.target}: {verdict.detail}")
            return await target.put(new.name, artefact)
        finally:
            with trio.CancelScope(deadline=trio.current_time() + TIDY_SECONDS, shield=True):
                await self._tidy(target, name)

    async def _tidy(self, target: DeployTarget, beginning: str) -> None:
        """Take away what was tried, in this life or in one that ended in the middle of it."""
        try:
            for one in await target.list():
                if one.name.startswith(beginning) and (beginning != STAGING or not self._others(target)):
                    await target.remove(one.name)
        except OrchdError as error:
            LOG.info("what was tried in %s stays there: %s", target.kind, error)

    def _others(self, target: DeployTarget) -> bool:
        """Whether another switch may be trying something in that target now."""
        return sum(lock.locked() for lock in self._switching.values()) > 1

    async def _put_back(self, target: DeployTarget, name: str, before: Deployment | None) -> None:
        """What the name stood for before, or nothing."""
        if before is not None and before.target == target.kind and before.state != ROLLING_BACK:
            await target.put(name, self.artefact(before))
        else:
            await target.remove(name)

    async def _keep(self, new: Deployment, before: Deployment | None, job: str | None) -> None:
        """Its row, and what it needs to go back; the event; files that nothing needs any more go."""
        node = self._node
        old = before
        if before is not None and (_needs(before) == _needs(new) or before.state == ROLLING_BACK):
            old = before_of(before)  # no step back: what was before that
        bare = None if old is None else msgspec.structs.replace(old, before="", also=())
        new = msgspec.structs.replace(
            new, before="" if bare is None else _text(bare), also=(*_further(new), *_needs(bare))
        )
        await trio.to_thread.run_sync(node.deployments.put, new)
        if before is not None and before.target != new.target and before.state != ROLLING_BACK:
            try:
                await node.target(before.target).remove(before.name)
            except OrchdError as error:
                LOG.warning("%s stays in %s, where it was before: %s", before.name, before.target, error)
        for blob in () if before is None else (before.blob, *before.also):
            await trio.to_thread.run_sync(self.drop_blob, blob)
        told = {"name": new.name, "target": new.target}
        if new.state == ROLLED_BACK:
            told |= {"adapter": new.was, "reason": new.reason}
            node.events.emit("deployment.rolled_back", told, job)
        else:
            node.events.emit("deployment.ready", told, job)

    # ---- a deployment that is there -----------------------------------------------------------------------------

    async def roll_back(self, name: str) -> Deployment:
        """What answered before answers again. Raises `NothingBefore`, and `NotAdmitted` where nobody should use it."""
        node = self._node
        row = await trio.to_thread.run_sync(node.deployments.get, name)
        old = before_of(row)
        if old is None:
            raise NothingBefore(f"nothing answered as {row.name} before", field="deployment")
        await trio.to_thread.run_sync(node.check_usable, old.adapter)
        await self.switch(msgspec.structs.replace(old, created=node.clock()))
        return await trio.to_thread.run_sync(node.deployments.get, name)

    async def verify(self, name: str) -> Verdict:
        """Ask it for all of its proven answers. Raises `DeploymentUnknown` where its target has it no more."""
        row = await trio.to_thread.run_sync(self._node.deployments.get, name)
        target, golden = self._node.target(row.target), made_of(row).golden
        full = target.full_name(row.name)
        if all(target.full_name(one.name) != full for one in await target.list()):
            raise DeploymentUnknown(
                f"{row.name} is in {row.target} no more",
                hint=f"`orchctl deployment remove {row.name}` forgets it, then deploy it again.",
                field="deployment",
            )
        if not golden:
            detail = "it was made by an orchd that kept no proven answers; deploy it again to have some"
            return Verdict(held=False, compared=0, equal=0, detail=detail)
        return await target.verify(row.name, golden)

    async def remove(self, name: str) -> None:
        """Out of its target, which may have lost it already, and forgotten with its files."""
        node = self._node
        row = await trio.to_thread.run_sync(node.deployments.get, name)
        async with self._switching.setdefault(row.name, trio.Lock()):
            if row.state != ROLLING_BACK:  # else it is out already
                try:
                    await node.target(row.target).remove(row.name)
                except DeploymentUnknown as error:
                    LOG.info("%s was gone already: %s", row.name, error)
            await trio.to_thread.run_sync(node.deployments.remove, row.name)
            for blob in (row.blob, *row.also):
                await trio.to_thread.run_sync(self.drop_blob, blob)

    def shown_before(self, row: Deployment) -> Before | None:
        """What `roll_back` would bring."""
        old = before_of(row)
        if old is None:
            return None
        names = {} if old.adapter is None else self._node.registry.names.of([old.adapter])
        return Before(
            adapter=old.adapter or "",
            name=names.get(old.adapter or "", ""),
            target=old.target,
            quantize=old.quantize,
            created_ms=old.created,
        )

    def artefact(self, row: Deployment) -> Artefact:
        """What is put into a target for it."""
        registry, made = self._node.registry, made_of(row)
        return Artefact(
            path=registry.blobs.path(bytes.fromhex(row.blob)),
            sha256=row.blob,
            size=row.size,
            template=made.template,
            carried=made.carried,
            layer=registry.blobs.path(bytes.fromhex(made.layer)) if made.layer else None,
            adapter=registry.adapter_folder(row.adapter) if row.adapter and row.target == "vllm" else None,
        )

    def drop_blob(self, blob: str) -> None:
        """Forget a deployment's file (hexadecimal SHA-256), unless a deployment still needs it."""
        rows = self._node.deployments.list()
        if blob not in self._coming and all(blob != row.blob and blob not in row.also for row in rows):
            self._node.registry.blobs.remove(bytes.fromhex(blob))

    def _before(self, name: str) -> Deployment | None:
        return next((row for row in self._node.deployments.list() if row.name == name), None)


def made_of(row: Deployment) -> Made:
    """Empty for a deployment of an orchd that did not keep it."""
    return msgspec.json.decode(row.made, type=Made) if row.made else Made()


def before_of(row: Deployment) -> Deployment | None:
    """What answered under its name before."""
    return msgspec.json.decode(row.before, type=Deployment) if row.before else None


def _further(row: Deployment) -> tuple[str, ...]:
    """Blobs that it needs besides its own."""
    return tuple(filter(None, [made_of(row).layer]))


def _needs(row: Deployment | None) -> tuple[str, ...]:
    return () if row is None else (row.blob, *_further(row))


def _made(note: DeployNote, result: BuildResult) -> Made:
    """With another model's template and texts only the proven prompts are asked again, not the chats."""
    golden = result.golden
    if note.carried is not None:
        golden = tuple(msgspec.structs.replace(one, messages=()) for one in golden)
    layer = "" if result.layer is None else result.layer.sha256
    return Made(golden=golden, template=result.template, carried=note.carried, layer=layer)


def _text(value: msgspec.Struct) -> str:
    return msgspec.json.encode(value).decode()
