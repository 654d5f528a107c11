"""Deployments, and talking to them."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from orchd import room
from orchd.choosing import choose
from orchd.deploying import STAGING, made_of
from orchd.errors import (
    AdapterNotMergeable,
    DeployOntoRefused,
    DeployUnderWay,
    ParamsInvalid,
    TargetNameRefused,
)
from orchd.importers.conversation import Message
from orchd.node import Node, in_thread
from orchd.notes import DeploymentRow, DeployNote
from orchd.registry import ADMITTED, AdapterRow, Base
from orchd.registry.peft_config import SERVABLE
from orchd.registry.use import not_admitted
from orchd.rollback import READY
from orchd.rpc.connection import Session
from orchd.rpc.methods_data import conversations
from orchd.rpc.table import Params, Result, method
from orchd.serve.ollama import OllamaTarget
from orchd.serve.specs import AdapterPath, BuildSpec, Prompt
from orchd.serve.targets import Carried, DeployTarget

PROOF_PROMPTS = 8
MAX_TOKENS = 4096
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,79}")


class DeployStart(Params, frozen=True, kw_only=True):
    """`adapter` None deploys the plain base. `dataset`: the proof asks prompts from its test part.

    `force` switches although the proof failed; `replace` a model of that name which orchd did not put there. `onto`: a
    model in Ollama that is the adapter's base, whose template, system text, parameters and licence are taken over.
    `quantize` is F32, F16, Q8_0, Q4_K_M, or KEEP, which folds the adapter into the base's own GGUF file; empty stands
    for KEEP where the base came as one, else for F16.
    """

    name: str
    adapter: str | None = None
    target: str = "embedded"
    base: str = "demo"
    quantize: str = ""
    dataset: str | None = None
    force: bool = False
    replace: bool = False
    onto: str | None = None


class DeployStarted(Result, frozen=True, kw_only=True):
    """`job` None: there was nothing to do, as `note` says; `deployment` answers as wanted already."""

    job: str | None
    deployment: DeploymentRow | None = None
    note: str = ""


@method(
    "deploy.start",
    DeployStart,
    DeployStarted,
    "Make an adapter usable in a serving target, and prove that it answers the same.",
)
async def deploy_start(node: Node, p: DeployStart) -> DeployStarted:
    target = node.target(p.target)
    _check_name(p, target)
    adapter, base_name = None, p.base
    if p.adapter is not None:
        row = await _deployable(node, p.adapter, force=p.force)
        adapter = AdapterPath(id=row.id, path=str(await in_thread(node.registry.adapter_folder, row.id)))
        base_name = row.base
    base, gguf, quantize = await in_thread(choose, node.registry.known_bases, base_name, p.quantize)
    note = DeployNote(
        name=p.name,
        adapter=None if adapter is None else adapter.id,
        target=p.target,
        base=base.name,
        force=p.force,
        carried=None if p.onto is None else await _carried(target, p.onto, base),
    )
    async with node.deploying.starting:
        _check_idle(node, p.name)
        there = await node.deploying.check_free(p.name, target, replace=p.replace)
        if there and not (p.force or p.replace) and (same := await _same(node, note, quantize)) is not None:
            return DeployStarted(job=None, deployment=same, note=f"{p.name} answers so already: nothing was done")
        await in_thread(room.for_model, node.registry, base, quantize, gguf)
        spec = BuildSpec(
            base=str(base.path),
            adapter=adapter,
            name=p.name,
            gguf=gguf,
            quantize=quantize,
            prompts=await _proof_prompts(node, p.dataset),
            layer=p.target == "llama_server",
        )
        job = await node.jobs.submit("deploy", spec, title=f"deploy {p.name}", note=note)
    return DeployStarted(job=job.id)


async def _carried(target: DeployTarget, onto: str, base: Base) -> Carried:
    if not isinstance(target, OllamaTarget):
        raise DeployOntoRefused(f"{target.kind} has no models of its own to deploy onto", field="onto")
    await target.probe()
    return await target.carry(onto, base)


async def _deployable(node: Node, adapter: str, *, force: bool) -> AdapterRow:
    await node.network.caught_up()
    row = await in_thread(node.registry.adapter, adapter)
    if row.state != ADMITTED and not force:
        raise await in_thread(not_admitted, node.registry, row)
    await in_thread(node.check_usable, row.id)
    if SERVABLE not in row.capabilities:
        raise AdapterNotMergeable(
            f"{row.name} has more than factors (DoRA, trained biases, saved modules); that can't be folded in yet",
            field="adapter",
        )
    return row


def _check_idle(node: Node, name: str) -> None:
    """Raises `DeployUnderWay` while something else is being deployed under this name."""
    for job in node.jobs.going("deploy"):
        if msgspec.convert(job.note, DeployNote).name == name:
            raise DeployUnderWay(
                f"{name} is being deployed already, by {job.id}",
                hint=f"`orchctl job watch {job.id}` shows it, `orchctl job cancel {job.id}` stops it.",
                field="name",
            )


async def _same(node: Node, wanted: DeployNote, quantize: str) -> DeploymentRow | None:
    """The deployment that does already what is wanted."""
    for row in await in_thread(node.deployments.list):
        there = (row.name, row.adapter, row.target, row.base, row.quantize, row.state)
        made = made_of(row)
        same = there == (wanted.name, wanted.adapter, wanted.target, wanted.base, quantize, READY)
        if same and made.golden and made.carried == wanted.carried:  # else an older orchd kept nothing to ask it by
            return await node.deployment_row(row)
    return None


def _check_name(p: DeployStart, target: DeployTarget) -> None:
    if not NAME.fullmatch(p.name) or p.name.startswith(STAGING):
        raise TargetNameRefused(f"{p.name[:80]!r} is no name: letters, digits and _ . : - are taken", field="name")
    target.check_name(p.name)


async def _proof_prompts(node: Node, dataset: str | None) -> tuple[Prompt, ...]:
    if dataset is None:
        return ()
    row = await in_thread(node.datasets.get, dataset)
    return await in_thread(_prompts, node.datasets.folder(row.id))


def _prompts(folder: Path) -> tuple[Prompt, ...]:
    """The first conversations of the test part, each up to its last answer."""
    return tuple(tuple(messages[:-1]) for messages in conversations(folder, "test", PROOF_PROMPTS))


class ChatComplete(Params, frozen=True, kw_only=True):
    """`temperature` 0 is greedy. With `stream`, `chat.delta` notifications come before the answer."""

    deployment: str
    messages: list[Message]
    max_tokens: int = 64
    temperature: float = 0.0
    stream: bool = False


class ChatAnswer(Result, frozen=True, kw_only=True):
    """`deployment` is who answered, and `route` why it was chosen; empty where it was named."""

    text: str
    tokens: int
    deployment: str
    route: str = ""


class ChatDelta(Result, frozen=True, kw_only=True):
    """The params of the notification `chat.delta`."""

    deployment: str
    text: str


@method("chat.complete", ChatComplete, ChatAnswer, "Ask a deployment in the embedded runtime.")
async def chat_complete(node: Node, p: ChatComplete, session: Session) -> ChatAnswer:
    if not 1 <= p.max_tokens <= MAX_TOKENS:
        hint = f"Give `--max-tokens` a number from 1 to {MAX_TOKENS:,}."
        raise ParamsInvalid(f"max_tokens {p.max_tokens} is not from 1 to {MAX_TOKENS:,}", hint=hint, field="max_tokens")
    if not 0 <= p.temperature <= 2:
        hint = "Give `--temperature` a number from 0 (always the likeliest word) to 2."
        raise ParamsInvalid(f"temperature {p.temperature} is not from 0 to 2", hint=hint, field="temperature")
    if not p.messages:
        hint = 'Give at least one message: {"role": "user", "content": "..."}.'
        raise ParamsInvalid("there is no message to answer", hint=hint, field="messages")
    name, completion, route = await node.answerers.complete(
        p.deployment, p.messages, max_tokens=p.max_tokens, temperature=p.temperature
    )
    parts: list[str] = []
    async with completion as answer:
        async for piece in answer:
            text = piece if parts else piece.lstrip()  # many templates begin an answer with a blank
            parts.extend([text] if text else [])
            if p.stream and text:
                await session.notify("chat.delta", ChatDelta(deployment=name, text=text))
    return ChatAnswer(text="".join(parts), tokens=answer.tokens, deployment=name, route=route)
