"""Asking a deployment: what is refused before a model is asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchd.answering import Answerers, Resolved
from orchd.errors import DeploymentUnknown, ServedElsewhere
from orchd.importers.conversation import Message
from orchd.node import Node
from orchd.registry.local_rows import Deployment
from orchd.registry.own import Deployments
from orchd.rpc.connection import Session
from orchd.rpc.methods_serving import ChatComplete, chat_complete
from tests.helpers import Lab


@pytest.fixture
def node(lab: Lab) -> Node:
    """Only the list of deployments is there, and who answers."""
    made = cast(Node, SimpleNamespace(deployments=Deployments(lab.registry.local)))
    made.answerers = Answerers(made)
    return made


def question(deployment: str) -> Any:
    return ChatComplete(deployment=deployment, messages=[Message(role="user", content="hello")])


async def test_what_ollama_serves_is_asked_there(node: Node) -> None:
    node.deployments.put(
        Deployment(
            name="us",
            adapter=None,
            target="ollama",
            state="ready",
            base="demo",
            blob="00" * 32,
            size=1,
            quantize="F16",
            parity=None,
            created=0,
        )
    )
    with pytest.raises(ServedElsewhere, match="us is served by Ollama") as refused:
        await chat_complete(node, question("us"), cast(Session, None))
    assert "`ollama run us`" in refused.value.hint
    with pytest.raises(DeploymentUnknown):
        await chat_complete(node, question("them"), cast(Session, None))


async def test_a_resolved_name_is_asked_for_each_question(node: Node) -> None:
    """The name stands for nobody by itself: whoever chooses sees the conversation, and says a deployment."""
    seen: list[str] = []

    async def choose(messages: tuple[Message, ...]) -> Resolved:
        seen.append(messages[-1].content)
        return Resolved("nobody", "nearest")

    node.answerers.resolvers["orchd/auto"] = choose
    with pytest.raises(DeploymentUnknown, match="nobody"):
        await chat_complete(node, question("orchd/auto"), cast(Session, None))
    assert seen == ["hello"]
