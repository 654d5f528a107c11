"""Whether a training is worth its time, as far as its rows tell at once. No torch: the daemon asks."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from orchd.train.datasets.store import (
    PARTS,
    ChatRow,
    CompletionRow,
    PreferenceRow,
    Row,
    TextRow,
    digest_of_content,
    read_part,
)
from orchd.train.plan import WORTH_EXAMPLES, not_worth
from orchd.train.plan_specs import DataFacts

STRETCH: Final = 500
"""Characters of text that count as one example: in how many a base will read it is not known here."""


def doubts(dataset: Path) -> tuple[str, ...]:
    """What `train plan` would say against a training on the data set (a folder), but for what the base knows already.

    It reads until there is nothing to be said: some rows, of most data sets. Raises `DatasetUnusable`.
    """
    examples, distinct, answers = 0, set[str](), set[str]()
    for row in read_part(dataset, PARTS[0]):
        stretches = 1 + len(row.text) // STRETCH if isinstance(row, TextRow) else 1
        examples += stretches
        if len(distinct) < WORTH_EXAMPLES:
            distinct |= {f"{digest_of_content(row)} {at}" for at in range(stretches)}
        if len(answers) < 2:
            answers |= {f"{_learnt(row)} {at}" for at in range(stretches)}
        if len(distinct) >= WORTH_EXAMPLES and len(answers) > 1:
            return ()
    whole = DataFacts(
        examples=examples, distinct=len(distinct), answers=len(answers), counted=0, tokens=0, longest=0, lengths=0
    )
    return not_worth(whole, None)


def _learnt(row: Row) -> str:
    """What counts in the loss."""
    if isinstance(row, ChatRow):
        return "\n".join(one.content for one in row.messages if one.role == "assistant" and one.counts)
    if isinstance(row, CompletionRow):
        return row.completion
    return row.chosen if isinstance(row, PreferenceRow) else row.text
