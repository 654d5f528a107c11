"""Who answers under a name: a deployment in the embedded runtime, or one that a resolver chooses for each question.

`chat.complete` and the OpenAI-compatible endpoint both ask here. A name such as `orchd/auto` is put into `resolvers`
by whoever chooses: it gets the conversation and says the deployment. Deployments can't have a slash in their names, so
the two never meet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import trio

from orchd.errors import AnswerInterrupted, ServedElsewhere
from orchd.importers.conversation import Message
from orchd.registry.local_rows import Deployment
from orchd.rollback import ROLLING_BACK
from orchd.serve.embedded import Completion
from orchd.serve.endpoint.messages import Asked, ModelCard
from orchd.serve.endpoint.server import Answering
from orchd.serve.wire import DEFAULTS, Sampling

if TYPE_CHECKING:
    from orchd.node import Node

ELSEWHERE = {
    "ollama": "Ollama",
    "vllm": "vLLM",
    "llama_server": "llama-server",
    "folder": "whatever reads that folder",
}
"""What people call a target."""


class Resolved(NamedTuple):
    """The name of the deployment that is to answer, and why; empty where it was named."""

    name: str
    why: str = ""


Resolver = Callable[[tuple[Message, ...]], Awaitable[Resolved]]
"""The conversation so far → who is to answer. Raises numbered errors."""


class Answerers:
    """The names that can be asked on this node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.resolvers: dict[str, Resolver] = {}

    async def resolve(self, name: str, messages: Sequence[Message]) -> tuple[Deployment, str]:
        """Who answers, and why it does. Raises DeploymentUnknown, ServedElsewhere, AnswerInterrupted while it falls
        back to its base."""
        resolver = self.resolvers.get(name)
        name, why = Resolved(name) if resolver is None else await resolver(tuple(messages))
        deployment = await trio.to_thread.run_sync(self._node.deployments.get, name)
        if deployment.state == ROLLING_BACK:
            hint = "Ask again in a few seconds: the base is being built."
            raise AnswerInterrupted(f"{name} is falling back to its plain base: {deployment.reason}", hint=hint)
        if deployment.target != "embedded":
            who = ELSEWHERE.get(deployment.target, deployment.target)
            how = f"Ask it there: `ollama run {deployment.name}`." if deployment.target == "ollama" else None
            raise ServedElsewhere(f"{deployment.name} is served by {who}, not by orchd", hint=how, field="deployment")
        return deployment, why

    async def complete(
        self,
        name: str,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float,
        sampling: Sampling = DEFAULTS,
    ) -> Answering:
        """The answer, which begins when it is iterated over. Raises as `resolve` does."""
        deployment, why = await self.resolve(name, messages)
        completion: Completion = self._node.runtime.complete(
            deployment.name, messages, max_tokens=max_tokens, temperature=temperature, sampling=sampling
        )
        return Answering(deployment.name, completion, why)

    # ---- what the endpoint asks ---------------------------------------------------------------------------------

    async def models(self) -> Sequence[ModelCard]:
        """What answers here: the resolved names, then the deployments in the embedded runtime."""
        rows = await trio.to_thread.run_sync(self._node.deployments.list)
        cards = [ModelCard(name, self._node.started_ms // 1000) for name in self.resolvers]
        here = [row for row in rows if row.target == "embedded" and row.state != ROLLING_BACK]
        return [*cards, *(ModelCard(row.name, row.created // 1000) for row in here)]

    async def answer(self, asked: Asked) -> Answering:
        return await self.complete(
            asked.model,
            asked.messages,
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            sampling=asked.sampling,
        )
