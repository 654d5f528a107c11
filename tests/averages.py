"""Averages at the door: honest ones and ones that lie about how they were made, signed by whoever wants to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from orchd.average.specs import AverageSpec, WeightedAdapter
from orchd.average.worker import run
from orchd.crafting import average_extra, lineage_record
from orchd.jobs.context import JobContext
from orchd.records import Lineage, Manifest, parse_id
from orchd.records.ids import ADAPTER
from orchd.registry.describe import adapter_info, file_entries


class Silent:
    """A pipe that nobody reads."""

    def send(self, message: object) -> None:
        pass

    def receive(self) -> dict[str, object] | None:
        return None


def average(leaves: Mapping[str, Path], out: Path, **spec: Any) -> tuple[Path, Lineage, dict[str, Any]]:
    """The average of PEFT folders by adapter id: its own folder, and what an honest author says of it."""
    out.mkdir()
    wanted = AverageSpec(
        adapters=tuple(WeightedAdapter(id=id, path=str(path)) for id, path in leaves.items()),
        **({"rank": 2, "dtype": "F32"} | spec),
    )
    result = run(wanted, JobContext(out, 1, Silent()))
    ids = tuple(parse_id(id, ADAPTER) for id in leaves)
    lineage = lineage_record(result, ids, method=result.method, rank=int(wanted.rank))
    return out / result.adapter, lineage, average_extra(result, ids)


def claim(honest: Manifest, folder: Path, lineage: Lineage, extra: dict[str, Any], **lies: Any) -> Manifest:
    """A manifest for an average's folder like another one of the base; `lies` replace fields of the lineage."""
    return msgspec.structs.replace(
        honest,
        adapter=adapter_info(folder),
        files=file_entries(folder),
        training=None,
        lineage=msgspec.structs.replace(lineage, **lies),
        extra=extra,
    )


def scale_one_factor(folder: Path, by: float) -> None:
    """As if whoever averaged had made one module louder: its alpha, which the files hold."""
    config = json.loads((folder / "adapter_config.json").read_text())
    module = "model.layers.0.self_attn.q_proj"
    config["alpha_pattern"] = {module: by * config["lora_alpha"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
