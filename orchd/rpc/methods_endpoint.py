"""The OpenAI-compatible endpoint: opened when somebody asks for it, closed with the daemon."""

from __future__ import annotations

from typing import Annotated

import msgspec

from orchd.node import Node, in_thread
from orchd.rpc.places import absolute
from orchd.rpc.table import NoParams, Params, Result, method
from orchd.serve.endpoint.server import HOST
from orchd.serve.endpoint.token import read_or_make

TOKEN_FILE = "endpoint-token"


class ServeEndpoint(Params, frozen=True, kw_only=True):
    """`port` 0 is any free one. `token_file` None is one in the data folder; it is made where it isn't there."""

    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0
    token_file: str | None = None


class EndpointShown(Result, frozen=True, kw_only=True):
    """`address` is what clients call the base URL, empty while it is closed. `models` can be asked."""

    open: bool
    address: str
    token_file: str
    models: tuple[str, ...]


@method("serve.endpoint", ServeEndpoint, EndpointShown, "Open an OpenAI-compatible endpoint on loopback, with a token.")
async def serve_endpoint(node: Node, p: ServeEndpoint) -> EndpointShown:
    path = node.paths.data / TOKEN_FILE if p.token_file is None else absolute(p.token_file, "token_file")
    token = await in_thread(read_or_make, path)
    await node.endpoint.open(p.port, token)
    node.endpoint_token_file = str(path)
    return await _shown(node)


@method("serve.status", NoParams, EndpointShown, "Whether the endpoint is open, and what can be asked there.")
async def serve_status(node: Node, _: NoParams) -> EndpointShown:
    return await _shown(node)


class EndpointClosed(Result, frozen=True, kw_only=True):
    was_open: bool


@method("serve.stop", NoParams, EndpointClosed, "Close the endpoint; answers under way are broken off.")
async def serve_stop(node: Node, _: NoParams) -> EndpointClosed:
    return EndpointClosed(was_open=await node.endpoint.close())


async def _shown(node: Node) -> EndpointShown:
    port = node.endpoint.port
    return EndpointShown(
        open=port is not None,
        address="" if port is None else f"http://{HOST}:{port}/v1",
        token_file="" if port is None else node.endpoint_token_file,
        models=tuple(card.name for card in await node.answerers.models()),
    )
