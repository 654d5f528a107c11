"""The standing of an adapter that comes in, told before its rows are made: one transaction does for both.

What is decided or received meanwhile must count all the same. Whoever decides something writes it down as an act, has
the view of people read again, and then computes anew the standing of what the decision reaches (`restand.py`), each
after the other. So an adapter's rows are either there when that is computed, or they are made after the view was
forgotten, or after the act: both are counted here, and the adapter waits in quarantine until it was weighed again.
"""

from __future__ import annotations

from typing import Self

from orchd.records import Manifest, Verified
from orchd.registry.local import Local
from orchd.registry.local_rows import Release, Trash, Verdict
from orchd.registry.people import People
from orchd.registry.rows import edges
from orchd.registry.standing import Facts, Standing, standing


class Weighing:
    """A standing that holds as long as nothing else was decided. `begin` comes before the adapter's own act."""

    def __init__(self, local: Local, people: People) -> None:
        self._local, self._people = local, people
        self._act, self._changes = local.last, people.changes
        self._found: Standing | None = None
        self._was_used = False

    @classmethod
    def begin(cls, local: Local, people: People, manifest: Verified[Manifest], verdict: Verdict) -> Self:
        """Of an adapter whose files are whole."""
        self = cls(local, people)
        revoked = people.revoked()
        if not (revoked and edges(manifest)):  # else the index has to tell whether it contains a revoked one
            facts = Facts(
                reasons=verdict.reasons,
                policy=people.policy_reason(manifest.author, manifest.id),
                released=local.get(Release, manifest.id) is not None,
                trashed=local.get(Trash, manifest.id) is not None,
                revoked=revoked.get(manifest.id, ""),
                blocked=people.blocked(manifest.author),
                equivocated=people.equivocated(manifest.author),
            )
            self._found = standing(facts)
        return self

    def use(self) -> Standing | None:
        """For the adapter's row, in the transaction of its act; None when it must be weighed later."""
        is_alone = self._local.last == self._act + 1 and self._people.changes == self._changes
        self._was_used = self._found is not None and is_alone
        return self._found if self._was_used else None

    def holds(self) -> bool:
        """After the act: whether the adapter stands as it should."""
        return self._was_used and self._people.changes == self._changes
