"""Which conversations of an export are wanted: by id, title, date, model, or what is said in them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from orchd.errors import ParamsInvalid
from orchd.importers.conversation import Completion, Conversation, Example, Passage

DAY_MS: Final = 86_400_000
_DATE: Final = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")


class Pick(msgspec.Struct, frozen=True, kw_only=True):
    """All that is given must fit; nothing given takes everything. Letters' case does not matter.

    ``ids``: beginnings of ids. ``title``, ``model`` and ``search``: a part of the title, of the model's name, of
    any message. ``since_ms`` and ``until_ms`` (0: open) bound the time of the last change, the first included.
    """

    ids: tuple[str, ...] = ()
    title: str = ""
    since_ms: int = 0
    until_ms: int = 0
    model: str = ""
    search: str = ""

    def wants(self, one: Example) -> bool:
        return (
            (not self.ids or any(one.id.startswith(id) for id in self.ids))
            and _in(self.title, one.title)
            and self._in_time(one)
            and (not self.model or (isinstance(one, Conversation) and _in(self.model, one.model)))
            and (not self.search or any(_in(self.search, text) for text in texts_of(one)))
        )

    def _in_time(self, one: Example) -> bool:
        at = one.updated_ms or (one.created_ms if isinstance(one, Conversation) else 0)
        return (not self.since_ms or at >= self.since_ms) and (not self.until_ms or 0 < at < self.until_ms)


def texts_of(one: Example) -> tuple[str, ...]:
    """Every text of an example, in its order."""
    if isinstance(one, Conversation):
        return tuple(message.content for message in one.messages)
    if isinstance(one, Passage):
        return (one.text,)
    if isinstance(one, Completion):
        return (one.prompt, one.completion)
    return (*(message.content for message in one.messages), one.chosen, one.rejected)


def bounds(since: str, until: str) -> tuple[int, int]:
    """Unix milliseconds (UTC) of the begin of ``since`` and of the end of ``until``: 2025, 2025-03 or 2025-03-14.

    Raises `ParamsInvalid`.
    """
    return _begin(since, "since") if since else 0, _end(until, "until") if until else 0


def _begin(text: str, field: str) -> int:
    return int(_date(text, field).timestamp() * 1000)


def _end(text: str, field: str) -> int:
    begin = _date(text, field)
    steps = {4: 366, 7: 31, 10: 1}
    after = begin + timedelta(days=steps[len(text)])
    after = after.replace(day=1) if len(text) < 10 else after
    return int((after.replace(month=1) if len(text) == 4 else after).timestamp() * 1000)


def _date(text: str, field: str) -> datetime:
    try:
        if not _DATE.fullmatch(text):
            raise ValueError(text)
        return datetime.fromisoformat((text + "-01-01")[:10]).replace(tzinfo=UTC)
    except ValueError:
        hint = f"Give `--{field}` a year, month or day, such as 2025, 2025-03 or 2025-03-14."
        raise ParamsInvalid(f"{field} {text[:40]!r} is no date", hint=hint, field=field) from None


def _in(wanted: str, text: str) -> bool:
    return wanted.casefold() in text.casefold()
