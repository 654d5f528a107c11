"""What a member concludes from what it knows: whose increments count, which recipe is heaviest, what all say of it."""

from __future__ import annotations

from orchd.average.recipe import MILLION
from orchd.average.rounds_state import (
    MAX_AGE,
    Average,
    Candidate,
    Global,
    Here,
    Increment,
    Judgement,
    Recipe,
    State,
    make_recipe,
    weight_of,
)


def expected(s: State) -> set[str]:
    """Those who were in the last round, or came late to it, unless what they sent was refused."""
    recent = [known for known in s.increments.values() if known.increment.round >= s.round - 1]
    gone = {known.increment.author for known in recent if known.state is Here.REFUSED}
    return {known.increment.author for known in recent} - gone - {s.me}


def quiet_ms(s: State) -> int:
    """When nothing new will have come for a while."""
    newest = max((known.at_ms for known in s.increments.values()), default=s.began_ms)
    return newest + s.rules.linger_ms


def usable(s: State) -> list[Increment]:
    """Of each member the newest increment that is here, not too late and was not used; by author."""
    recent = {one.recipe for one in s.globals}
    used = {leaf for digest, one in s.candidates.items() if digest in recent for leaf, _ in one.recipe.leaves}
    found: dict[str, Increment] = {}
    for known in s.increments.values():
        one = known.increment
        if known.state is not Here.HERE or one.adapter in used or global_of(s, one.start) is None:
            continue
        if not s.round - MAX_AGE <= one.round <= s.round:
            continue
        before = found.get(one.author)
        if before is None or (-one.round, one.adapter) < (-before.round, before.adapter):
            found[one.author] = one
    return [found[author] for author in sorted(found)]


def global_of(s: State, recipe: str) -> Global | None:
    """The global of this recipe, if it is one of those that led here. What was left for another one is not: others who
    never had it could not use what goes on from it."""
    if not recipe:
        return Global(round=0)
    return next((one for one in reversed(s.globals) if one.recipe == recipe and one.here), None)


def can_make(s: State, recipe: Recipe) -> bool:
    """Whoever has just gone over to what others have lacks the global before that, where momentum wants it."""
    return global_of(s, recipe.before) is not None


def announcers(s: State, round: int) -> set[str]:
    """Known members who have announced an average of a round."""
    known = members(s)
    return {one.author for one in s.averages.values() if one.round == round and (not known or one.author in known)}


def believed(s: State) -> list[Average]:
    """Of each recipe that enough known members have announced one average; newest round first, then most leaves."""
    known, needed = members(s), quorum(s)
    by: dict[Recipe, dict[str, Average]] = {}
    for one in s.averages.values():
        if not known or one.author in known:
            by.setdefault(one.recipe, {})[one.author] = one
    found = [min(told.values(), key=lambda one: one.adapter) for told in by.values() if len(told) >= needed]
    return sorted(found, key=lambda one: (-one.round, -len(one.recipe.leaves), one.recipe.digest))


def members(s: State) -> set[str]:
    """Others who have lately contributed something that was admitted here; none for who has just come."""
    held = {known.increment.author for known in s.increments.values() if known.state is Here.HERE}
    contributed = {share.author for played in s.played[-MAX_AGE:] for share in played.shares}
    return (held | contributed) - {s.me}


def quorum(s: State) -> int:
    """So many others, who have announced the same, are believed: most of those who are known, and as many as make an
    average with this node."""
    return max(1, s.rules.min_peers - 1, len(members(s)) // 2 + 1)


def offered(s: State, round: int, previous: str, before: str) -> dict[str, Candidate]:
    """Recipes of a round that others announced, follow the rules, and whose leaves are all here."""
    told = {one.recipe for one in s.averages.values() if one.round == round and one.recipe.previous == previous}
    followed = [recipe for recipe in told if _is_by_the_rules(s, recipe, round, before)]
    return {one.digest: s.candidates.get(one.digest) or Candidate(round=round, recipe=one) for one in followed}


def _is_by_the_rules(s: State, recipe: Recipe, round: int, before: str) -> bool:
    leaves = [s.increments.get(leaf) for leaf, _ in recipe.leaves]
    verified = [known.increment for known in leaves if known is not None and known.state is Here.HERE]
    if len(verified) < len(leaves) or len({one.author for one in verified}) < len(leaves):
        return False
    if not (can_make(s, recipe) and all(global_of(s, one.start) is not None for one in verified)):
        return False
    return recipe == make_recipe(s.rules, verified, round, recipe.previous, before)


def weigh(s: State, candidate: Candidate) -> int:
    """Of one that others made, what they say."""
    if candidate.foreign:
        return len(candidate.recipe.leaves) * MILLION
    increments = [s.increments[leaf].increment for leaf, _ in candidate.recipe.leaves]
    return weight_of(increments, candidate.round, candidate.recipe.previous)


Order = tuple[bool, int, str]


def order(s: State, digest: str, weight: int) -> Order:
    """The smallest is adopted: what most have settled on (so that a late one changes nothing any more), then the
    heaviest, then the smaller digest."""
    return (digest not in {one.recipe.digest for one in believed(s)}, -weight, digest)


def judgements(s: State, digest: str) -> dict[str, Judgement]:
    """By member: what those say of a recipe who are in it, each once."""
    candidate = s.candidates[digest]
    leaves = {leaf for leaf, _ in candidate.recipe.leaves}
    inside = {known.increment.author for leaf, known in s.increments.items() if leaf in leaves}
    found: dict[str, Judgement] = {}
    for average in sorted(s.averages.values(), key=lambda one: one.adapter):
        for author, judgement in told_of(s, average.adapter).items():
            if average.recipe.digest == digest and author in inside and author == average.author:
                found.setdefault(author, judgement)
    if candidate.own is not None:
        found[s.me] = candidate.own
    return found


def verdict(s: State, digest: str) -> str:
    """Why a recipe is not adopted; empty when it is. Members that had one vote in it have one here."""
    found = judgements(s, digest)
    votes: dict[int | str, list[bool]] = {}
    vote_of: dict[str, int] = {share.author: share.vote for share in s.candidates[digest].shares}
    for author, judgement in found.items():
        votes.setdefault(vote_of.get(author, author), []).append(judgement.worse)
    worse = sum(2 * sum(told) > len(told) for told in votes.values())
    if 2 * worse <= len(votes):
        return ""
    return f"worse than the global before it on the data of {worse} of {len(votes)} that measured it"


def told_of(s: State, adapter: str) -> dict[str, Judgement]:
    measured = s.attested.get(adapter)
    return measured.told if measured else {}
