"""What was decided and received about authors and their adapters, as everything else asks for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from orchd.registry import revocation, standing
from orchd.registry.index import Index
from orchd.registry.local import Local
from orchd.registry.local_rows import Received
from orchd.registry.trust import REVOCATION, TrustBook, View, read_view


class People:
    """The judges that `restand` asks. `me` is this node's key; call `forget` after every act that changes a verdict."""

    def __init__(self, local: Local, index: Index, me: str) -> None:
        self._index, self._local = index, local
        self.me = me
        self._book = TrustBook(lambda: read_view(local, self.me))

    def view(self) -> View:
        """Everything about authors, at this moment."""
        return self._book.view()

    def forget(self) -> None:
        self._book.forget()

    @property
    def changes(self) -> int:
        """How often something changed."""
        return self._book.forgotten

    def level(self, author: str) -> str:
        """self, followed, allowed, stranger or blocked."""
        return self.view().level(author)

    def blocked(self, author: str) -> str:
        return self.view().blocked(author)

    def equivocated(self, author: str) -> bool:
        return self.view().equivocated(author)

    def policy_reason(self, author: str, adapter: str) -> str:
        return self.view().policy_reason(author, adapter)

    def revoked(self) -> Mapping[str, str]:
        return revocation.revoked(self._index, self.view()) if self._any_revocation else {}

    def revocation(self, adapter: str, author: str) -> str:
        """What this author said when taking this adapter back; empty when they have not. It need not be here."""
        return revocation.of(self._index, self.view(), adapter, author) if self._any_revocation else ""

    def said_revoked(self) -> Mapping[str, str]:
        """Of announced adapters too whose author is not known, where whoever announced them has revoked them."""
        return {**revocation.claimed(self._index, self.view()), **self.revoked()} if self._any_revocation else {}

    def unproven(self) -> list[str]:
        """Ids whose signed manifest would tell whether a revocation that was received concerns what is here."""
        return revocation.unproven(self._index) if self._any_revocation else []

    @property
    def _any_revocation(self) -> bool:
        """Whether one was ever received: most nodes know of none, and then nothing has to be looked through."""
        return self._local.has(Received, "kind = ?", (REVOCATION,))

    def containing(self, ids: Collection[str]) -> Mapping[str, Sequence[str]]:
        return revocation.containing(self._index, ids)

    def against(self, ids: Sequence[str]) -> dict[str, str]:
        """Why adapters may not be used, whatever is released or forced: revoked, or of a blocked or lying author."""
        revoked = self.revoked()
        containing = self.containing(revoked.keys())
        told = revocation.named(self._index, {one for id in ids for one in containing.get(id, ())})
        rows = self._index.read(
            "SELECT digest, author FROM adapter WHERE digest IN (SELECT unnest($1::VARCHAR[]))", (list(ids),)
        )
        authors, view = dict(rows), self.view()
        found = dict[str, str]()
        for id in ids:
            author = authors.get(id)
            reasons = standing.against(
                revoked.get(id, ""),
                [told[one] for one in containing.get(id, ())],
                "" if author is None else view.blocked(author),
                author is not None and view.equivocated(author),
            )
            if reasons:
                found[id] = reasons[0]
        return found
