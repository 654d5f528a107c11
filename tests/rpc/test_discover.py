"""The OpenRPC document against the official meta-schema (npm @open-rpc/meta-schema 1.14.9, Apache-2.0)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from orchd.rpc import methods
from orchd.rpc.discover import document
from orchd.rpc.table import Method, NoParams, method
from tests.rpc.houses import TABLE

META = Path(__file__).with_name("openrpc-meta-schema.json")


@pytest.fixture(scope="module")
def validator() -> Any:
    """The meta-schema points at JSON Schema Tools' copy of draft 7; the draft's own takes its place here."""
    draft = jsonschema.Draft7Validator.META_SCHEMA
    stand_in = {
        **draft,
        "$id": "https://meta.json-schema.tools",
        "definitions": {**draft["definitions"], "JSONSchemaObject": {"properties": draft["properties"]}},
    }
    registry: Any = Registry().with_resources(
        [
            (name, Resource(contents=stand_in, specification=DRAFT7))
            for name in ("https://meta.json-schema.tools", "https://meta.json-schema.tools/")
        ]
    )
    schema = json.loads(META.read_text())
    return jsonschema.Draft7Validator(schema, registry=registry)


@pytest.mark.parametrize("table", [TABLE, methods.TABLE], ids=["small", "whole"])
def test_the_document_is_valid(validator: Any, table: dict[str, Method]) -> None:
    made = json.loads(json.dumps(document(table)))
    assert [error.message for error in validator.iter_errors(made)] == []
    assert made["openrpc"].startswith("1.3")
    assert [row["name"] for row in made["methods"]] == sorted(table)


def test_the_meta_schema_would_notice(validator: Any) -> None:
    made = document(TABLE)
    del made["methods"][0]["params"]
    assert list(validator.iter_errors(made))


def test_params_come_from_the_structs() -> None:
    made = document(TABLE)
    add = next(row for row in made["methods"] if row["name"] == "test.add")
    assert add["paramStructure"] == "by-name"
    assert add["params"][0] == {"name": "first", "required": True, "schema": {"type": "integer"}}
    assert add["params"][1] == {"name": "second", "required": False, "schema": {"type": "integer", "default": 1}}
    name = add["result"]["schema"]["$ref"].rpartition("/")[2]
    assert made["components"]["schemas"][name]["properties"]["sum"] == {"type": "integer"}


def test_the_table_refuses_what_could_hide_a_mistake() -> None:
    import msgspec

    class Loose(msgspec.Struct):
        pass

    with pytest.raises(TypeError):
        method("a.b", Loose, dict, "lets unknown names pass", {})
    with pytest.raises(ValueError, match="no free"):
        method("test.add", NoParams, dict, "taken", TABLE)
    with pytest.raises(ValueError, match="no free"):
        method("Nonsense", NoParams, dict, "no noun.verb", {})
