"""The nouns and verbs of `orchctl`, as plain data: `orchctl --help` and shell completion load nothing else.

A test compares this with the commands of `orchd/cli/nouns/` and with the daemon's method table.
"""

from __future__ import annotations

NOUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "status": ("what the daemon is doing", ()),
    "demo": ("the whole loop on this machine, in about three minutes", ()),
    "base": ("base models", ("list", "look", "show", "add", "remove", "verify", "link")),
    "dataset": (
        "what to train on",
        (
            *("import", "validate", "create", "list", "show", "stats", "preview", "rows", "findings"),
            *("prepare", "export", "delete"),
        ),
    ),
    "train": ("train an adapter on a data set", ("plan", "worth", "validate", "start", "resume", "continue_from")),
    "environment": ("the Python packages that training needs", ("show", "make", "repair", "remove")),
    "checkpoint": ("what trainings keep on their way", ("list", "best", "cleanup")),
    "job": ("long work: its progress, its log, its end", ("list", "show", "watch", "cancel", "logs", "report")),
    "adapter": (
        "adapters that are here or that peers offer",
        (
            *("list", "show", "search", "why", "versions", "diff", "publish", "fetch", "evaluate", "compare"),
            *("leak-report", "verify", "revoke", "attest", "cosign", "export", "import", "scan"),
            *("pin", "unpin", "release", "remove"),
        ),
    ),
    "registry": ("what lies on the disk, and keeping it in order", ("stats", "scrub", "gc", "rebuild", "backup")),
    "undo": ("take back what was done last", ()),
    "average": ("make one adapter from several", ("plan", "preview", "start", "show", "verify")),
    "federation": (
        "train one adapter together, in rounds, with no server",
        ("create", "join", "status", "leave", "list"),
    ),
    "topic": ("where adapters are announced and found", ("join", "leave", "list", "invite")),
    "net": ("peers and addresses", ("status", "peers", "connect", "doctor", "ban", "unban", "stats")),
    "deploy": ("make an adapter usable, and prove that it answers the same", ()),
    "deployment": ("what is deployed", ("list", "show", "verify", "rollback", "remove")),
    "chat": ("ask a deployment", ()),
    "route": ("the right adapter for each request", ("explain", "status", "correct")),
    "serve": ("an OpenAI-compatible endpoint on this machine", ("endpoint", "status", "stop")),
    "events": ("what happens, as it happens", ()),
    "config": ("settings", ("show",)),
    "identity": ("who this node is", ("show", "rotate")),
    "trust": ("whom this node trusts", ("list", "show", "follow", "allow", "block", "remove", "policy")),
    "daemon": ("the daemon itself", ("status", "stop")),
    "service": ("orchd under systemd or launchd", ("install", "status", "uninstall")),
    "rpc": ("the daemon's methods themselves", ("discover", "call")),
    "completion": ("shell completion: bash or zsh", ("bash", "zsh")),
}
"""Noun → what it is, and its verbs (none: the noun is the command)."""

EXIT_CODES = """\
exit codes: 0 it worked, 1 the operation failed, 2 usage, 3 the daemon is not reachable,
            4 refused by policy or verification, 5 not found, 130 interrupted"""

JSON_NOTE = """\
With --json, standard output gets one JSON document: the result, or {"error": {code, name, message, hint, page,
field}}; streams (events, job watch, chat) get one a line. The exit code tells which."""


def overview() -> str:
    """The text of `orchctl --help`."""
    width = max(map(len, NOUNS)) + 2
    lines = ["usage: orchctl NOUN [VERB] [--json] [--quiet] ...", ""]
    for noun, (summary, verbs) in NOUNS.items():
        lines.append(f"  {noun:<{width}}{summary}")
        if verbs:
            lines.append(f"  {'':<{width}}  {' '.join(verbs)}")
    lines += [
        "",
        "`orchctl NOUN --help` and `orchctl NOUN VERB --help` tell more. ORCHD_HOME=DIR talks to the daemon of that",
        "home. Ids may be shortened to a beginning that is unique: `adp_` and four characters or more, `key_` and",
        "eight for `orchctl trust`. NO_COLOR is respected.",
        "",
        JSON_NOTE,
        "",
        EXIT_CODES,
    ]
    return "\n".join(lines)
