"""`rpc.discover`: the OpenRPC document, made from the method table that dispatches."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from orchd import __version__
from orchd.rpc.table import METHODS, Method, NoParams, method

OPENRPC = "1.3.2"
REFERENCE = "#/components/schemas/{name}"


def document(table: Mapping[str, Method] = METHODS) -> dict[str, Any]:
    """The OpenRPC document of a table."""
    rows = sorted(table.values(), key=lambda row: row.name)
    types = [kind for row in rows for kind in (row.params, row.result)]
    schemas, components = msgspec.json.schema_components(types, ref_template=REFERENCE)
    pairs = zip(schemas[::2], schemas[1::2], strict=True)
    return {
        "openrpc": OPENRPC,
        "info": {
            "title": "orchd",
            "version": __version__,
            "description": "JSON-RPC 2.0, one JSON text a line, over the node's Unix socket. Named params only.",
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "methods": [
            _method(row, _resolve(params, components), result)
            for row, (params, result) in zip(rows, pairs, strict=True)
        ],
        "components": {"schemas": components},
    }


def _method(row: Method, params: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    required = set(params.get("required", ()))
    return {
        "name": row.name,
        "summary": row.summary,
        "tags": [{"name": row.name.partition(".")[0]}],
        "paramStructure": "by-name",
        "params": [
            {"name": name, "required": name in required, "schema": schema}
            for name, schema in params.get("properties", {}).items()
        ],
        "result": {"name": "result", "schema": result},
    }


def _resolve(schema: dict[str, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    """The schema itself where another only points to it."""
    reference = schema.get("$ref")
    return components[reference.rpartition("/")[2]] if reference else schema


@method("rpc.discover", NoParams, dict[str, Any], "This document: every method with its parameters and its result")
async def discover(node: object, params: NoParams) -> dict[str, Any]:
    return _of_this_node()


@cache
def _of_this_node() -> dict[str, Any]:
    """The table no longer changes once requests are served, and the document takes some 20 ms to make."""
    return document()
