"""`orchctl topic`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from orchd.cli.command import Command, Params, arg, switch
from orchd.cli.context import Context
from orchd.cli.nouns.net import called
from orchd.cli.text import table, when

ALONE = (
    "0 peers are connected: `orchctl net connect ADDRESS` with the address that another's `orchctl net status` shows"
)
NOWHERE = (
    "the line holds no address, because the network is not running: whoever joins with it finds nobody by it alone"
)
PREVIEW = switch("--dry-run", "only say what would be done", dest="preview")
TOPIC = arg("topic", "its name; `private/LABEL` for a private one")


def given(text: str) -> str:
    """`-` is read from standard input: other users of the machine can see what stands on a command line."""
    return sys.stdin.readline().strip() if text == "-" else text


def human_list(shown: dict[str, Any]) -> str:
    return table(
        ("topic", "kind", "members", "adapters", "last announced"),
        [(t["label"], t["kind"], t["members"], t["adapters"], _announced(t)) for t in shown["topics"]],
        empty="in no topic yet",
    )


def _announced(topic: dict[str, Any]) -> str:
    if topic["kind"] == "lan":
        return "never: this network only"
    return when(topic["announced_ms"]) if topic["announced_ms"] else "not yet"


def human_invite(shown: dict[str, Any]) -> str:
    """The line alone, so that it can be piped."""
    if shown["preview"]:
        return f"would {'make' if shown['new'] else 'invite to'} {shown['topic']}"
    return str(shown["invitation"])


def invite(context: Context, options: argparse.Namespace, params: Params) -> None:
    """Print the line; beside it, that nobody can come by it alone."""
    shown = context.call("topic.invite", **params)
    context.show(shown, human_invite)
    if not shown["addresses"]:
        context.note(NOWHERE)


def human_join(shown: dict[str, Any]) -> str:
    """Who comes with an invitation has addresses of members, which are being tried now."""
    alone = not shown["peers"] and not shown["topic"].startswith("private/")
    note = shown.get("note") or (ALONE if alone else "")
    return f"{'would join' if shown.get('preview') else 'joined'} {called(shown['topic'])}{f'; {note}' if note else ''}"


def human_leave(shown: dict[str, Any]) -> str:
    """The secret of a private topic goes with it, as soon as that can't be undone any more; who was its last member
    can't get it from anybody."""
    left = f"{'would leave' if shown.get('preview') else 'left'} {called(shown['topic'])}"
    if shown.get("preview") and shown.get("invitation"):
        return f"{left}; `orchctl undo` or an invitation joins it again"
    if not (line := shown.get("invitation")):
        return left
    again = f"`orchctl undo {called(shown['topic'])}` joins it again"
    return f"{left}; {again}. So does this line, anywhere; keep it as you would a password:\n{line}"


COMMANDS = (
    Command(
        "join",
        "Announce this node under a topic and look for others there",
        human_join,
        method="topic.join",
        arguments=(
            arg("topic", "its name, or the line that `orchctl topic invite` printed; - reads it", type=given),
            PREVIEW,
        ),
        more="A name that begins with lan/ stays on this network: found by mDNS, never on the DHT.\n"
        "Any other name is public: whoever knows it can see who is there and fetch what is published.\n"
        "A private topic is joined with an invitation. Where others use the machine too, give it on standard input\n"
        "(`orchctl topic join -`): they can see what stands on a command line.",
    ),
    Command(
        "leave",
        "Leave a topic",
        human_leave,
        method="topic.leave",
        arguments=(TOPIC, PREVIEW),
        more="`orchctl undo TOPIC` joins it again, with a private one's secret, which is kept for that among the last\n"
        "hundred acts. After those only the line that is printed does, where nobody else is a member.",
    ),
    Command("list", "The topics that this node is in", human_list, method="topic.list"),
    Command(
        "invite",
        "Print the line with which others join a private topic, which is made if it is new",
        human_invite,
        method="topic.invite",
        run=invite,
        arguments=(arg("topic", "what to call it, such as family"), PREVIEW),
        more="The line holds the topic's secret and addresses of this node: whoever has it is a member. Send it as\n"
        "you would a password. To shut a member out, make a new topic.",
    ),
)
