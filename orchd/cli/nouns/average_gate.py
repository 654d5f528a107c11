"""What `orchctl average` says of the gate: whose data decided, who was refused, and with which figure."""

from __future__ import annotations

from typing import Any

from orchd.cli.text import counted, duration, fields, number, percent, short, table

SAID = {
    "off": "off",
    "better": "better than the base and than each of them alone",
    "candidate": "a candidate: not announced unless you name it",
    "quarantined": "quarantined: a trigger changes what it says",
}
LEGEND = (
    "(nats a token, ± half of the 95 % interval, below 0 is better: what a quarter of it alone adds to the base's\n"
    "loss, and leaving its share out to the average's)"
)
NEVER_SAFE = "no trigger that was tried stands out; that does not make it safe: nobody can try them all"


def planned(gate: dict[str, Any] | None) -> str:
    """For a plan: which data will decide."""
    if gate is None:
        return ""
    if not gate["on"]:
        return f"off: {gate['reason']}"
    rows = counted(gate["examples"], "held-out row")
    return f"{gate['dataset']} decides ({gate['reason']}): {rows}, about {duration(gate['seconds'])}"


def judged(gate: dict[str, Any] | None, names: dict[str, str]) -> str:
    """For a result: what the gate decided of each, what it tried, and the verdict."""
    if gate is None:
        return ""
    if gate["verdict"] == "off":
        return "\n".join([f"the gate was off: {gate['reason']}", *_refusals(gate["leaves"], names)])
    rows = [
        (
            names.get(leaf["id"], ""),
            short(leaf["id"]),
            leaf["stage"],
            _difference(leaf["alone"]),
            _difference(leaf["without"]),
            number(leaf["single"]["against"]) if leaf["single"] else "",
        )
        for leaf in gate["leaves"]
    ]
    heads = ("leaf", "id", "", "a quarter of it", "without its share", "its own loss")
    parts = [
        _named(f"the gate: {SAID[gate['verdict']]}; {gate['reason']}", names),
        f"{table(heads, rows)}\n{LEGEND}",
        "\n".join(_refusals(gate["leaves"], names)),
        _tried(gate["tried"]),
        _taken(gate),
        _triggers(gate["probes"]),
    ]
    return "\n\n".join(filter(None, parts))


def shown(gate: dict[str, Any] | None) -> str:
    """What a manifest says."""
    if gate is None:
        return "its manifest says nothing of a gate"
    refused = [
        f"refused: {one['name']} {short(one['id'])}: {one['stage']}"
        + ("" if one["difference"] is None else f", {one['difference']:+.2f} nats a token")
        for one in gate["refused"]
    ]
    rows: list[tuple[str, object]] = [("gate", SAID.get(gate["verdict"], gate["verdict"]))]
    if gate["examples"]:
        single = f"{gate['single']:+.2f}: that one is better" if gate["single"] > 0 else "none is better"
        rows += [
            ("loss", f"{gate['loss']:.2f}, the base {gate['base_loss']:.2f}; on {gate['examples']} rows of its author"),
            ("difference", f"{gate['difference']:+.2f} ± {gate['interval']:.2f} nats a token"),
            ("best leaf alone", single),
            ("triggers tried", f"{gate['triggers']}; what was not tried is not known"),
        ]
    return "\n".join([fields(rows), *refused])


def _refusals(leaves: list[dict[str, Any]], names: dict[str, str]) -> list[str]:
    return [
        f"refused: {names.get(leaf['id'], '')} {short(leaf['id'])}: {leaf['reason']}"
        for leaf in leaves
        if leaf["stage"] != "kept"
    ]


def _difference(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    told = f"{found['loss'] - found['against']:+.3f}"
    return told if found["low"] is None else f"{told} ± {(found['high'] - found['low']) / 2:.3f}"


def _tried(tried: list[dict[str, Any]]) -> str:
    if len(tried) < 2:
        return ""
    rows = [
        (one["method"], f"{one['strength_ppm'] / 1_000_000:g}", number(one["loss"]), "taken" if one["chosen"] else "")
        for one in tried
    ]
    return table(("method", "strength", "loss", ""), rows)


def _taken(gate: dict[str, Any]) -> str:
    used = f"{gate['choosing']} rows to choose by and {gate['deciding']} others to decide by, of {gate['rows']}"
    late = "; the time was over before everything was tried" if gate["late"] else ""
    return f"{used}; {counted(gate['evaluations'], 'evaluation')} in {duration(gate['seconds'])}{late}"


def _triggers(probes: list[dict[str, Any]]) -> str:
    jumped = [one for one in probes if one["jumped"]]
    if not jumped:
        return f"{counted(len(probes), 'trigger')} tried: {NEVER_SAFE}" if probes else ""
    rows = []
    for one in jumped:
        answers = percent(one["repeated"]), percent(one["plain"])
        rows.append((repr(one["trigger"]), f"{one['jump']:+.2f}", f"{one['usual']:+.2f}", *answers))
    return table(("trigger", "loss", "others", "one answer", "without it"), rows)


def _named(text: str, names: dict[str, str]) -> str:
    for id, name in names.items():
        text = text.replace(id, f"{name} {short(id)}")
    return text
