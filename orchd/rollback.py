"""Deployments of adapters that nobody should use any more fall back to the plain base.

An adapter that its author has revoked, or that contains one, and everything of a blocked or equivocating author is
taken out of its target at once; the plain base then answers under the same name. What is not finished when the daemon
ends goes on at its next start: until the base is there, the name does not answer.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from orchd.choosing import choose
from orchd.errors import OrchdError
from orchd.registry.local_rows import Deployment
from orchd.registry.standing import ADMITTED, QUARANTINED, StandingChange
from orchd.serve.specs import BuildSpec

if TYPE_CHECKING:
    from orchd.node import Node

LOG = logging.getLogger(__name__)
READY, ROLLING_BACK, ROLLED_BACK = "ready", "rolling_back", "rolled_back"
#: A target that could not be reached is tried again after so many seconds.
AGAIN_SECONDS = 300.0


class Rollbacks:
    """Started by the daemon; wakes when the standing of an adapter changes."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._wake = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        #: Jobs that build a base, by deployment.
        self._building: dict[str, str] = {}

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Started when what was due has been begun."""
        self._token = trio.lowlevel.current_trio_token()
        self._node.registry.on_standing = self._heard
        await self.look()
        task_status.started()
        while True:
            with trio.move_on_after(AGAIN_SECONDS):
                await self._wake.wait()
            self._wake = trio.Event()
            await self.look()

    def wake(self) -> None:
        """Look again."""
        self._wake.set()

    def _heard(self, change: StandingChange) -> None:
        """From any thread."""
        if self._token is not None:
            self._token.run_sync_soon(self._tell, change)

    def _tell(self, change: StandingChange) -> None:
        data = {"id": change.id, "name": change.name, "reason": change.reason}
        if change.after == QUARANTINED:
            self._node.events.emit("adapter.quarantined", data)
        elif change.after == ADMITTED and change.before == QUARANTINED:
            self._node.events.emit("adapter.released", data)
        self.wake()

    async def look(self) -> None:
        """Begin what has to be rolled back."""
        for deployment, reason in await trio.to_thread.run_sync(due, self._node):
            try:
                await self._roll_back(deployment, reason)
            except OrchdError as error:
                LOG.warning("deployment %s can't fall back to its base yet: %s", deployment.name, error)

    async def _roll_back(self, deployment: Deployment, reason: str) -> None:
        node = self._node
        if deployment.state != ROLLING_BACK:
            deployment = msgspec.structs.replace(
                deployment, state=ROLLING_BACK, adapter=None, was=deployment.adapter or "", reason=reason, parity=None
            )
            await trio.to_thread.run_sync(node.deployments.put, deployment)
            LOG.warning("deployment %s is rolled back: %s", deployment.name, reason)
            await self._take_out(deployment)
        if (job := self._building.get(deployment.name)) and not (await node.jobs.get(job)).state.ended:
            return
        ready = await trio.to_thread.run_sync(_plain_base, node, deployment)
        if ready is not None:
            await put_base(node, deployment, ready)
            return
        base, gguf, quantize = await trio.to_thread.run_sync(
            choose, node.registry.known_bases, deployment.base, deployment.quantize
        )
        spec = BuildSpec(
            base=str(base.path),
            adapter=None,
            name=deployment.name,
            gguf=gguf,
            quantize=quantize,
            prompts=(),
        )
        note = {
            "name": deployment.name,
            "adapter": None,
            "target": deployment.target,
            "base": deployment.base,
            "force": True,
            "was": deployment.was,
            "reason": deployment.reason,
        }
        started = await node.jobs.submit("deploy", spec, title=f"roll {deployment.name} back", note=note)
        self._building[deployment.name] = started.id

    async def _take_out(self, deployment: Deployment) -> None:
        """Nobody is answered by it any more."""
        try:
            await self._node.target(deployment.target).remove(deployment.name)
        except OrchdError as error:
            LOG.info("%s was not in %s: %s", deployment.name, deployment.target, error)


def due(node: Node) -> list[tuple[Deployment, str]]:
    """Deployments that may not answer as they do, and why; those that were begun are among them."""
    found = node.deployments.list()
    against = node.registry.people.against([row.adapter for row in found if row.adapter is not None])
    return [
        (row, row.reason if row.state == ROLLING_BACK else against[row.adapter or ""])
        for row in found
        if row.state == ROLLING_BACK or row.adapter in against
    ]


def _plain_base(node: Node, deployment: Deployment) -> Deployment | None:
    """Another deployment of the same plain base, whose file can be used again."""
    for other in node.deployments.list():
        same = (other.adapter, other.base, other.quantize) == (None, deployment.base, deployment.quantize)
        if same and other.state != ROLLING_BACK and node.registry.blobs.has(bytes.fromhex(other.blob)):
            return other
    return None


async def put_base(node: Node, deployment: Deployment, base: Deployment) -> None:
    """The plain base answers under the name of a deployment that is rolled back."""
    done = msgspec.structs.replace(
        deployment,
        state=ROLLED_BACK,
        blob=base.blob,
        size=base.size,
        parity=base.parity,
        made=base.made,
        created=node.clock(),
    )
    await node.deploying.switch(done, force=True)
