"""What was read of tables that only acts change, for as long as none does.

A statement takes DuckDB from half a millisecond to three, most of it for its plan, and one adapter at the door asks a
dozen times for rows of tables that are empty, or that hold what the user has decided once.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from typing import TypeVar

#: Answers kept of one table; when there are more, all go.
ANSWERS = 64

T = TypeVar("T")


class Remembered:
    """Answers by table and question. Safe to use from several threads.

    What is read while a table changes may be of before or after, so it is neither answered from here nor kept.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[Hashable, dict[Hashable, object]] = {}
        self._changing: Counter[Hashable] = Counter()
        self._changes: Counter[Hashable] = Counter()

    @contextmanager
    def change(self, tables: Collection[Hashable]) -> Iterator[None]:
        """The block changes these tables, or tries to."""
        with self._lock:
            self._changing.update(tables)
        try:
            yield
        finally:
            with self._lock:
                self._changing.subtract(tables)
                self._changes.update(tables)
                for table in tables:
                    self._answers.pop(table, None)

    def answer(self, table: Hashable, question: Hashable, read: Callable[[], T], most: Callable[[T], bool]) -> T:
        """What `read` gives, or gave before. `most`: whether an answer is small enough to be kept."""
        with self._lock:
            known = self._answers.get(table, {})
            if question in known and not self._changing[table]:
                return known[question]  # type: ignore[return-value]
            begun = self._changes[table]
        found = read()
        if most(found):
            with self._lock:
                if begun == self._changes[table] and not self._changing[table]:
                    kept = self._answers.setdefault(table, {})
                    if len(kept) >= ANSWERS:
                        kept.clear()
                    kept[question] = found
        return found
