"""What is deployed: shown, asked again, rolled back, taken out."""

from __future__ import annotations

from orchd.node import Node, in_thread
from orchd.notes import DeploymentRow
from orchd.rpc.table import NoParams, Params, Result, method


class DeploymentNamed(Params, frozen=True, kw_only=True):
    deployment: str


class DeploymentRows(Result, frozen=True, kw_only=True):
    deployments: list[DeploymentRow]


@method("deployment.list", NoParams, DeploymentRows, "What is deployed, and where.")
async def deployment_list(node: Node, _: NoParams) -> DeploymentRows:
    rows = await in_thread(node.deployments.list)
    return DeploymentRows(deployments=[await node.deployment_row(row) for row in rows])


@method("deployment.show", DeploymentNamed, DeploymentRow, "One deployment with the figures of its proof.")
async def deployment_show(node: Node, p: DeploymentNamed) -> DeploymentRow:
    return await node.deployment_row(await in_thread(node.deployments.get, p.deployment))


class DeploymentVerified(Result, frozen=True, kw_only=True):
    """`equal` of `compared` proven answers came again."""

    deployment: str
    target: str
    held: bool
    compared: int
    equal: int
    detail: str


@method(
    "deployment.verify",
    DeploymentNamed,
    DeploymentVerified,
    "Ask a deployment's target for the proven answers again.",
)
async def deployment_verify(node: Node, p: DeploymentNamed) -> DeploymentVerified:
    row = await in_thread(node.deployments.get, p.deployment)
    found = await node.deploying.verify(row.name)
    return DeploymentVerified(
        deployment=row.name,
        target=row.target,
        held=found.held,
        compared=found.compared,
        equal=found.equal,
        detail=found.detail,
    )


class DeploymentRolledBack(Result, frozen=True, kw_only=True):
    """`deployment` answers now; `instead_of` is the adapter that did (empty: the plain base)."""

    deployment: DeploymentRow
    instead_of: str


@method(
    "deployment.rollback",
    DeploymentNamed,
    DeploymentRolledBack,
    "Let what answered under the name before answer again; a second time takes that back.",
)
async def deployment_rollback(node: Node, p: DeploymentNamed) -> DeploymentRolledBack:
    row = await in_thread(node.deployments.get, p.deployment)
    now = await node.deploying.roll_back(row.name)
    return DeploymentRolledBack(deployment=await node.deployment_row(now), instead_of=row.adapter or "")


class DeploymentRemoved(Result, frozen=True, kw_only=True):
    deployment: str


@method("deployment.remove", DeploymentNamed, DeploymentRemoved, "Take a deployment out of its target.")
async def deployment_remove(node: Node, p: DeploymentNamed) -> DeploymentRemoved:
    await node.deploying.remove(p.deployment)
    return DeploymentRemoved(deployment=p.deployment)
