"""docs/SPEC-exchange.md is what others read: it names every message, every field and every limit as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from orchd.net import exchange, messages
from orchd.net.gossip import PREFIX, PROTOCOL
from orchd.net.messages import Failed, Reply, Request
from orchd.net.policy import gossip, names, relay, repair

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "SPEC-exchange.md").read_text("utf-8")
#: The page in one line, thin spaces of its numbers left out.
TEXT = re.sub(r"(?<=\d) (?=\d{3}\b)", "", " ".join(PAGE.split()))
KINDS: set[Any] = {*get_args(Request), *get_args(Reply)} - {Failed}


def rows() -> dict[str, set[str]]:
    """The fields of each message by its `op`; those that may be left out bear a question mark."""
    found: dict[str, set[str]] = {}
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].startswith("`"):
            for op, told in ((cells[0], cells[1]), (cells[2], cells[3])):
                if told != "the same":
                    found[op.strip("`")] = set(re.findall(r"(?<![\w(])`(\w+)`\??", told)) | optional(told)
    return found


def optional(told: str) -> set[str]:
    return {f"{name}?" for name in re.findall(r"`(\w+)`\?", told)}


@pytest.mark.parametrize("kind", sorted(KINDS, key=str))
def test_the_page_has_the_fields_of_a_message(kind: type[msgspec.Struct]) -> None:
    fields = msgspec.structs.fields(kind)
    wanted = {field.name for field in fields} | {f"{field.name}?" for field in fields if not field.required}
    assert rows()[str(kind.__struct_config__.tag)] == wanted


def test_the_page_has_no_other_messages() -> None:
    assert rows().keys() == {kind.__struct_config__.tag for kind in KINDS}


@pytest.mark.parametrize(
    "words",
    [
        f"`{messages.PROTOCOL}`",
        f"`{PROTOCOL}`",
        f"`{PREFIX}NAME`",
        f"`{names.INVITE}`",
        f"1 to {messages.TOPIC_NAME_LIMIT} code points",
        f"A question's frame has at most {messages.REQUEST_LIMIT} bytes, an answer's at most {messages.REPLY_LIMIT}",
        f"`length` (1 to {messages.RANGE_LIMIT})",
        f"at most {messages.RECORDS_LIMIT} envelopes, {messages.RECORDS_SIZE >> 10} KiB",
        f"`ids` (1 to {messages.RECORDS_LIMIT} digests)",
        f"at most {messages.TOPICS_LIMIT} keys",
        f"(ours carry {relay.CIRCUIT_BYTES >> 20} MiB, for {relay.CIRCUIT_S} s at most)",
        f"idle for {exchange.IDLE_S:.0f} s",
        f"more than {exchange.QUESTIONS_RATE:.0f} questions a second ({exchange.QUESTIONS_BURST:.0f} after a silence)",
        f"at most {repair.PARTS_LIMIT} parts and {repair.IDS_LIMIT} ids in all",
        f"the first {repair.FINGERPRINT_SIZE} bytes of SHA-256 of the ids' sum",
        f"if the other has more than {repair.TOLD}",
        f"Of one neighbour {gossip.NEIGHBOUR_RATE:.0f} messages a second are looked at "
        f"({gossip.NEIGHBOUR_BURST:.0f} after a silence)",
        f"one author one new record in {1 / gossip.AUTHOR_RATE:.0f} seconds ({gossip.AUTHOR_BURST:.0f})",
    ],
)
def test_the_page_has_the_limits_that_are_in_force(words: str) -> None:
    assert words in TEXT


@pytest.mark.parametrize(
    "reason", [messages.UNKNOWN, messages.BUSY, messages.QUOTA, messages.MALFORMED, messages.BROKEN]
)
def test_the_page_has_every_reason_of_failure(reason: str) -> None:
    assert f"`{reason}`" in TEXT.partition("`failed` with `reason`")[2][:250]
